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
    function register(uint256 stake) external;                 // >= minStake in total; pulls USDC
    function unregister() external;                             // no open lease; stake back
    function postOffer(uint64 priceE6, uint32 capacity, uint32 minTerm, uint32 maxTerm, uint32 memoryMiB, uint32 milliCpu, bytes32 usePolicy, string calldata endpoint, string calldata abuseContact) external returns (uint256 offer);
    function reprice(uint256 offer, uint64 priceE6) external;   // running leases keep theirs
    function setCapacity(uint256 offer, uint32 capacity) external;
    /// First call: within readyBy; starts the rent. Again after silence (vouchedAt + grace passed): replaces the node
    /// key.
    function ready(uint256 lease, address nodeKey, string calldata endpoint, bytes32 tlsKeyHash) external;
    function withdraw(uint256 lease) external returns (uint128 paid); // rent accrued so far

    // --- tenants ---
    function rent(uint256 offer, uint32 term, bytes32 codeHash, uint128 prepay) external returns (uint256 lease); // pulls prepay
    function topUp(uint256 lease, uint128 amount) external;     // anyone; pulls amount; never past the whole rent
    /// False, and no effect, for a lease that isn't running: one that ended must not stop a heartbeat.
    function vouch(uint256 lease) external returns (bool counted);
    /// Pays what accrued, sends the rest of escrow back. A Requested lease refunds everything; past readyBy its provider
    /// is counted failed.
    function close(uint256 lease) external returns (uint128 refund);

    // --- anyone ---
    function reclaim(uint256 lease) external;                   // Requested past readyBy: full refund, provider counted failed
    function expire(uint256 lease) external;                    // Ready, and past end or past vouchedAt + dropAfter
    function collect(address to) external returns (uint256 paid); // pays what the token refused to pay before

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
