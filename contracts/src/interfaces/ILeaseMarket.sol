// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title The open market for hosts: staked providers, offers, leases of at most 30 days.
/// Prices are in `E6` units: micro-USDC (1e-6 USDC) x 1e-6 per second, so a cheap host is not rounded away.
/// Rent rounds up in the provider's favour by less than one micro-USDC for a whole lease.
interface ILeaseMarket {
    enum LeaseState { None, Requested, Ready, Closed }

    struct Offer {
        address provider;
        uint64 priceE6;      // micro-USDC x 1e-6 per second
        uint32 capacity;     // leases at once
        uint32 used;
        uint32 minTerm;      // seconds
        uint32 maxTerm;      // seconds, <= MAX_TERM
        uint32 memoryMiB;
        uint32 milliCpu;
        bytes32 usePolicy;   // digest of the use policy; 0: none
        string endpoint;     // the provider daemon's URL
        string abuseContact;
    }

    struct Lease {
        address tenant;
        address provider;
        uint256 offer;
        uint64 priceE6;      // fixed for the whole lease
        bytes32 codeHash;    // sha2-256 digest of the code's root block (CIDv1 dag-pb)
        uint64 readyBy;      // chain seconds; past it anyone may `reclaim`
        uint64 start;        // 0 until ready
        uint64 end;          // start + term once ready
        uint32 term;
        uint64 vouchedAt;    // the last heartbeat that vouched for this lease
        uint128 escrow;      // paid in so far, gross, less what went back
        uint128 withdrawn;   // already paid to the provider
        LeaseState state;
        address nodeKey;
        bytes32 tlsKeyHash;
        string endpoint;     // the node's public URL
    }

    struct Record { uint32 served; uint32 failed; uint32 exited; }

    event Registered(address indexed provider, uint256 stake);
    event Unregistered(address indexed provider, uint256 stake);
    event OfferPosted(uint256 indexed offer, address indexed provider, uint64 priceE6, uint32 capacity, string endpoint);
    event OfferRepriced(uint256 indexed offer, uint64 priceE6);
    event CapacitySet(uint256 indexed offer, uint32 capacity);
    event LeaseRequested(uint256 indexed lease, uint256 indexed offer, address indexed tenant, address provider, uint64 priceE6, uint32 term, bytes32 codeHash, uint128 escrow);
    event LeaseReady(uint256 indexed lease, address nodeKey, string endpoint, bytes32 tlsKeyHash);
    event LeaseToppedUp(uint256 indexed lease, uint128 amount);
    event LeaseVouched(uint256 indexed lease, uint64 vouchedAt);
    /// Rent that left escrow for the provider.
    event RentPaid(uint256 indexed lease, address indexed provider, uint128 amount);
    /// The lease is over; `refund` went back to the tenant in the same transaction.
    event LeaseClosed(uint256 indexed lease, uint128 rentTotal, uint128 refund);
    /// The token refused a payment to `to` (frozen, say): it waits here until `collect(to)`.
    event Owed(address indexed to, uint256 amount);
    event Collected(address indexed to, uint256 amount);

    // --- errors: what a revert means ---
    error NotProvider();                // the caller is not the offer's or lease's provider
    error NotTenant();                  // the caller is not the lease's tenant
    error NotStaked();                  // less than minStake at stake
    error BadTerm();                    // outside the offer's terms, or an offer with impossible ones
    error NoCapacity();                 // every slot of the offer is taken
    error WrongState(LeaseState state); // the state it is in
    error TooEarly(uint64 until);       // chain seconds from which it is possible
    error TooLate(uint64 since);        // chain seconds after which it is not
    error ZeroAddress();
    error ZeroAmount();
    error OverEscrow();                 // more than the whole rent of the term
    error StakeInUse();                 // leases are open
    error UnknownOffer(uint256 offer);
    error BadMarket();                  // the constructor's numbers make no market

    // --- providers ---

    /// Who: anyone, who becomes a provider by it, or a provider that adds to its stake. Takes `stake` micro-USDC from
    /// the caller (who approved it) and counts what arrived. ZeroAmount: nothing to add; NotStaked: less than minStake
    /// in all.
    function register(uint256 stake) external;
    /// Who: a provider without open leases, requested ones included: StakeInUse. Sends the whole stake back;
    /// NotStaked: there is none. Its offers stay listed, and cannot be rented until it is staked again. Record and
    /// bars stay too.
    function unregister() external;
    /// Who: a provider with minStake at stake, else NotStaked. Any price and capacity, 0 too; BadTerm: not 0 < minTerm
    /// <= maxTerm <= MAX_TERM. Memory, processor, policy, endpoint and contact are the provider's word: nothing here
    /// checks them. No offer is ever removed; capacity 0 closes one.
    function postOffer(uint64 priceE6, uint32 capacity, uint32 minTerm, uint32 maxTerm, uint32 memoryMiB, uint32 milliCpu, bytes32 usePolicy, string calldata endpoint, string calldata abuseContact) external returns (uint256 offer);
    /// Who: the offer's provider, staked or not; NotProvider: anybody else, or no such offer. For leases rented from
    /// now on: those that run or wait keep the price that they were rented at.
    function reprice(uint256 offer, uint64 priceE6) external;
    /// Who: as `reprice`. Less than is in use ends no lease, it only rents out no more.
    function setCapacity(uint256 offer, uint32 capacity) external;
    /// Who: the lease's provider (NotProvider). For a Requested lease, up to readyBy (TooLate): names node key, URL
    /// and TLS key, and rent and term begin. For a Ready one only in silence, past vouchedAt + grace (TooEarly) and
    /// before its end (TooLate): replaces all three after a restart that lost the key, and neither vouches nor changes
    /// the rent. WrongState: closed. ZeroAddress: no key. That the key is its tenant's own is the provider's word; a
    /// new key makes nobody the treasury's operator.
    function ready(uint256 lease, address nodeKey, string calldata endpoint, bytes32 tlsKeyHash) external;
    /// Who: the lease's provider (NotProvider), while it is Ready (WrongState); what a closed one earned was paid when
    /// it closed. Sends what accrued and was not withdrawn yet; 0 if that is nothing. Reverts where the token refuses
    /// the provider: the rent stays in escrow for it.
    function withdraw(uint256 lease) external returns (uint128 paid);

    // --- tenants ---

    /// Who: anyone, who becomes the tenant; the offer as it stands now, and a slot of it until the lease is closed.
    /// Takes `prepay` micro-USDC from the caller (who approved it), 0 is allowed, and counts what arrived.
    /// UnknownOffer; NotStaked: its provider has less than minStake; BadTerm: outside the offer's terms; NoCapacity;
    /// OverEscrow: more than the whole term's rent. The provider has readyWithin seconds to be `ready`.
    function rent(uint256 offer, uint32 term, bytes32 codeHash, uint128 prepay) external returns (uint256 lease);
    /// Who: the lease's tenant, NotTenant for anybody else. Says that the host serves: rent accrues up to grace from
    /// now. False, and no effect, for a lease that isn't running: one that ended must not stop a heartbeat.
    function vouch(uint256 lease) external returns (bool counted);
    /// Who: the lease's tenant (NotTenant), Requested or Ready (WrongState). Pays what accrued, sends the rest of
    /// escrow back; what the token refuses waits for `collect`. A Ready lease counts as served if it was vouched for
    /// within grace or came to its end, otherwise as failed. A Requested lease refunds everything; past readyBy its
    /// provider is counted failed.
    function close(uint256 lease) external returns (uint128 refund);

    // --- anyone ---

    /// Who: anyone. Takes `amount` micro-USDC from the caller (who approved it) into a Requested or Ready lease's
    /// escrow (WrongState), and counts what arrived. ZeroAmount; OverEscrow: escrow never exceeds the whole term's
    /// rent. What is not earned goes to the tenant at the end, whoever paid it in.
    function topUp(uint256 lease, uint128 amount) external;
    /// Who: anyone, once a Requested lease is past readyBy (TooEarly; WrongState: not Requested). Closes it:
    /// everything goes back to the tenant, and its provider is counted failed. The caller gets nothing.
    function reclaim(uint256 lease) external;
    /// Who: anyone, once a Ready lease reached its end or is past vouchedAt + dropAfter (TooEarly; WrongState: not
    /// Ready). Closes it by `close`'s rules: served at its end, failed in silence. The caller gets nothing.
    function expire(uint256 lease) external;
    /// Who: anyone. Sends `to` what the token refused to pay it when its leases closed. ZeroAmount: nothing is owed.
    /// Reverts as long as the token refuses; then it stays owed.
    function collect(address to) external returns (uint256 paid);

    // --- views ---
    function MAX_TERM() external view returns (uint32);         // seconds: 30 days
    function owedTo(address who) external view returns (uint256);
    function openLeasesOf(address provider) external view returns (uint256);
    function token() external view returns (address);
    function minStake() external view returns (uint256);
    function readyWithin() external view returns (uint32);      // seconds a provider has
    function grace() external view returns (uint32);            // rent accrues to vouchedAt + grace
    function dropAfter() external view returns (uint32);        // silence after which anyone may expire
    function offerCount() external view returns (uint256);      // ids are 1..offerCount
    function leaseCount() external view returns (uint256);      // ids are 1..leaseCount
    function offerOf(uint256 offer) external view returns (Offer memory);
    function leaseOf(uint256 lease) external view returns (Lease memory);
    function accrued(uint256 lease) external view returns (uint128); // total rent earned so far, <= escrow
    function stakeOf(address provider) external view returns (uint256);
    function recordOf(address provider) external view returns (Record memory);
}
