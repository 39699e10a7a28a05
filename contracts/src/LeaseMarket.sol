// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Math} from "@openzeppelin/contracts/utils/math/Math.sol";
import {SafeCast} from "@openzeppelin/contracts/utils/math/SafeCast.sol";
import {ILeaseMarket} from "./interfaces/ILeaseMarket.sol";

/// @title LeaseMarket
/// @notice Nobody owns it and nothing in it can be changed. It holds stakes and the escrow of open leases, and always
/// exactly that: balance >= stakes + (escrow - withdrawn of open leases) + what it owes.
/// @dev Only the token of the constructor is ever called, and it is trusted not to lie about transfers.
contract LeaseMarket is ILeaseMarket, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// The longest lease, in seconds of real time. Scaled worlds use shorter ones.
    uint32 public constant MAX_TERM = 30 days;
    /// Prices are micro-USDC x 1e-6 per second.
    uint256 private constant E6 = 1e6;

    address public immutable token;
    uint256 public immutable minStake;
    uint32 public immutable readyWithin;
    uint32 public immutable grace;
    uint32 public immutable dropAfter;

    uint256 public offerCount;
    uint256 public leaseCount;
    mapping(address provider => uint256 microUsdc) public stakeOf;
    mapping(address provider => uint256) public openLeasesOf;
    mapping(address who => uint256 microUsdc) public owedTo;
    mapping(uint256 id => Offer) private _offers;
    mapping(uint256 id => Lease) private _leases;
    mapping(address provider => Record) private _records;

    /// @param token_ the only token of this market (USDC)
    /// @param minStake_ micro-USDC a provider must have at stake to be rented
    /// @param readyWithin_ seconds from `rent` to `ready`
    /// @param grace_ seconds of rent that accrue without a new heartbeat; at most `dropAfter_`
    /// @param dropAfter_ seconds of silence after which anyone may end a lease
    constructor(address token_, uint256 minStake_, uint32 readyWithin_, uint32 grace_, uint32 dropAfter_) {
        if (token_ == address(0)) revert ZeroAddress();
        if (minStake_ == 0 || readyWithin_ == 0 || grace_ == 0 || grace_ > dropAfter_) revert BadMarket();
        (token, minStake, readyWithin, grace, dropAfter) = (token_, minStake_, readyWithin_, grace_, dropAfter_);
    }

    // ------------------------------------------------------------------ providers

    /// @inheritdoc ILeaseMarket
    function register(uint256 stake) external nonReentrant {
        if (stake == 0) revert ZeroAmount();
        uint256 total = stakeOf[msg.sender] + _pullDown(stake);
        if (total < minStake) revert NotStaked();
        stakeOf[msg.sender] = total;
        emit Registered(msg.sender, total);
    }

    /// @inheritdoc ILeaseMarket
    function unregister() external nonReentrant {
        uint256 stake = stakeOf[msg.sender];
        if (stake == 0) revert NotStaked();
        if (openLeasesOf[msg.sender] != 0) revert StakeInUse();
        stakeOf[msg.sender] = 0;
        emit Unregistered(msg.sender, stake);
        IERC20(token).safeTransfer(msg.sender, stake);
    }

    /// @inheritdoc ILeaseMarket
    function postOffer(
        uint64 priceE6, uint32 capacity, uint32 minTerm, uint32 maxTerm, uint32 memoryMiB, uint32 milliCpu,
        bytes32 usePolicy, string calldata endpoint, string calldata abuseContact
    ) external returns (uint256 offer) {
        if (stakeOf[msg.sender] < minStake) revert NotStaked();
        if (minTerm == 0 || minTerm > maxTerm || maxTerm > MAX_TERM) revert BadTerm();
        offer = ++offerCount;
        _offers[offer] = Offer({
            provider: msg.sender, priceE6: priceE6, capacity: capacity, used: 0, minTerm: minTerm, maxTerm: maxTerm,
            memoryMiB: memoryMiB, milliCpu: milliCpu, usePolicy: usePolicy, endpoint: endpoint,
            abuseContact: abuseContact
        });
        emit OfferPosted(offer, msg.sender, priceE6, capacity, endpoint);
    }

    /// @inheritdoc ILeaseMarket
    function reprice(uint256 offer, uint64 priceE6) external {
        _ownOffer(offer).priceE6 = priceE6;
        emit OfferRepriced(offer, priceE6);
    }

    /// @inheritdoc ILeaseMarket
    function setCapacity(uint256 offer, uint32 capacity) external {
        _ownOffer(offer).capacity = capacity;
        emit CapacitySet(offer, capacity);
    }

    /// @inheritdoc ILeaseMarket
    function ready(uint256 lease, address nodeKey, string calldata endpoint, bytes32 tlsKeyHash) external {
        Lease storage l = _leases[lease];
        if (msg.sender != l.provider) revert NotProvider();
        if (nodeKey == address(0)) revert ZeroAddress();
        uint64 time = _now();
        if (l.state == LeaseState.Requested) {
            if (time > l.readyBy) revert TooLate(l.readyBy);
            (l.state, l.start, l.end, l.vouchedAt) = (LeaseState.Ready, time, time + l.term, time);
        } else if (l.state == LeaseState.Ready) {
            // The tenant's process was restarted without its key. Whoever still vouches for the old key keeps it.
            if (time <= l.vouchedAt + grace) revert TooEarly(l.vouchedAt + grace + 1);
            if (time >= l.end) revert TooLate(l.end);
        } else {
            revert WrongState(l.state);
        }
        (l.nodeKey, l.endpoint, l.tlsKeyHash) = (nodeKey, endpoint, tlsKeyHash);
        emit LeaseReady(lease, nodeKey, endpoint, tlsKeyHash);
    }

    /// @inheritdoc ILeaseMarket
    function withdraw(uint256 lease) external nonReentrant returns (uint128 paid) {
        Lease storage l = _leases[lease];
        if (msg.sender != l.provider) revert NotProvider();
        if (l.state != LeaseState.Ready) revert WrongState(l.state);
        uint128 earned = _accruedUp(l);
        paid = earned - l.withdrawn;
        if (paid == 0) return 0;
        l.withdrawn = earned;
        emit RentPaid(lease, msg.sender, paid);
        IERC20(token).safeTransfer(msg.sender, paid);
    }

    // ------------------------------------------------------------------ tenants

    /// @inheritdoc ILeaseMarket
    function rent(uint256 offer, uint32 term, bytes32 codeHash, uint128 prepay)
        external nonReentrant returns (uint256 lease)
    {
        Offer storage o = _offers[offer];
        if (o.provider == address(0)) revert UnknownOffer(offer);
        if (stakeOf[o.provider] < minStake) revert NotStaked();
        if (term < o.minTerm || term > o.maxTerm) revert BadTerm();
        if (o.used >= o.capacity) revert NoCapacity();
        if (prepay > _rentUp(o.priceE6, term)) revert OverEscrow();

        uint128 arrived = _pullDown(prepay);
        lease = ++leaseCount;
        ++o.used;
        ++openLeasesOf[o.provider];
        Lease storage l = _leases[lease];
        (l.tenant, l.provider, l.offer, l.priceE6) = (msg.sender, o.provider, offer, o.priceE6);
        (l.codeHash, l.term, l.escrow, l.state) = (codeHash, term, arrived, LeaseState.Requested);
        l.readyBy = _now() + readyWithin;
        emit LeaseRequested(lease, offer, msg.sender, l.provider, l.priceE6, term, codeHash, arrived);
    }

    /// @inheritdoc ILeaseMarket
    function topUp(uint256 lease, uint128 amount) external nonReentrant {
        Lease storage l = _leases[lease];
        if (!_isOpen(l)) revert WrongState(l.state);
        if (amount == 0) revert ZeroAmount();
        if (uint256(l.escrow) + amount > _rentUp(l.priceE6, l.term)) revert OverEscrow();
        uint128 arrived = _pullDown(amount);
        l.escrow += arrived;
        emit LeaseToppedUp(lease, arrived);
    }

    /// @inheritdoc ILeaseMarket
    function vouch(uint256 lease) external returns (bool counted) {
        Lease storage l = _leases[lease];
        if (msg.sender != l.tenant) revert NotTenant();
        if (l.state != LeaseState.Ready || _now() > l.end) return false;
        l.vouchedAt = _now();
        emit LeaseVouched(lease, l.vouchedAt);
        return true;
    }

    /// @inheritdoc ILeaseMarket
    function close(uint256 lease) external nonReentrant returns (uint128 refund) {
        Lease storage l = _leases[lease];
        if (msg.sender != l.tenant) revert NotTenant();
        if (!_isOpen(l)) revert WrongState(l.state);
        return _end(lease, l);
    }

    // ------------------------------------------------------------------ anyone

    /// @inheritdoc ILeaseMarket
    function reclaim(uint256 lease) external nonReentrant {
        Lease storage l = _leases[lease];
        if (l.state != LeaseState.Requested) revert WrongState(l.state);
        if (_now() <= l.readyBy) revert TooEarly(l.readyBy + 1);
        _end(lease, l);
    }

    /// @inheritdoc ILeaseMarket
    function expire(uint256 lease) external nonReentrant {
        Lease storage l = _leases[lease];
        if (l.state != LeaseState.Ready) revert WrongState(l.state);
        uint64 silentUntil = l.vouchedAt + dropAfter + 1;
        uint64 from = l.end < silentUntil ? l.end : silentUntil;
        if (_now() < from) revert TooEarly(from);
        _end(lease, l);
    }

    /// @inheritdoc ILeaseMarket
    function collect(address to) external nonReentrant returns (uint256 paid) {
        paid = owedTo[to];
        if (paid == 0) revert ZeroAmount();
        owedTo[to] = 0;
        emit Collected(to, paid);
        IERC20(token).safeTransfer(to, paid);
    }

    // ------------------------------------------------------------------ views

    /// @inheritdoc ILeaseMarket
    function offerOf(uint256 offer) external view returns (Offer memory) { return _offers[offer]; }

    /// @inheritdoc ILeaseMarket
    function leaseOf(uint256 lease) external view returns (Lease memory) { return _leases[lease]; }

    /// @inheritdoc ILeaseMarket
    function accrued(uint256 lease) external view returns (uint128) { return _accruedUp(_leases[lease]); }

    /// @inheritdoc ILeaseMarket
    function recordOf(address provider) external view returns (Record memory) { return _records[provider]; }

    // ------------------------------------------------------------------ inside

    /// Ends an open lease: pays the provider what accrued, the tenant the rest. Both payments may be refused by the
    /// token without stopping the end of the lease, or a frozen party could hold the other's money.
    function _end(uint256 lease, Lease storage l) private returns (uint128 refund) {
        uint128 earned = _accruedUp(l);
        uint128 paid = earned - l.withdrawn;
        refund = l.escrow - earned;
        Record storage record = _records[l.provider];
        // Closing a request in time is nobody's failure.
        if (l.state == LeaseState.Ready) {
            // A tenant that stopped vouching before the end says that the host failed it. Weak evidence, but public.
            if (_now() >= l.end || _now() <= l.vouchedAt + grace) ++record.served;
            else ++record.failed;
        } else if (_now() > l.readyBy) {
            ++record.failed;
        }
        (l.state, l.escrow, l.withdrawn) = (LeaseState.Closed, earned, earned);
        --_offers[l.offer].used;
        --openLeasesOf[l.provider];
        if (paid != 0) emit RentPaid(lease, l.provider, paid);
        emit LeaseClosed(lease, earned, refund);
        _pay(l.provider, paid);
        _pay(l.tenant, refund);
    }

    /// Takes `amount` from the caller and returns what arrived: a token may keep a fee, and only what is here is owed.
    /// So here the transfer stands before the effects; the token is the constructor's, and every entry that calls this
    /// is closed to reentry.
    function _pullDown(uint256 amount) private returns (uint128 arrived) {
        uint256 before = IERC20(token).balanceOf(address(this));
        IERC20(token).safeTransferFrom(msg.sender, address(this), amount);
        arrived = SafeCast.toUint128(Math.min(amount, IERC20(token).balanceOf(address(this)) - before));
    }

    function _pay(address to, uint256 amount) private {
        if (amount == 0 || IERC20(token).trySafeTransfer(to, amount)) return;
        owedTo[to] += amount;
        emit Owed(to, amount);
    }

    function _ownOffer(uint256 offer) private view returns (Offer storage o) {
        o = _offers[offer];
        if (msg.sender != o.provider) revert NotProvider();
    }

    function _isOpen(Lease storage l) private view returns (bool) {
        return l.state == LeaseState.Requested || l.state == LeaseState.Ready;
    }

    /// All rent earned so far, rounded up once for the whole lease and never more than escrow.
    function _accruedUp(Lease storage l) private view returns (uint128) {
        if (l.state == LeaseState.Closed) return l.withdrawn;
        if (l.state != LeaseState.Ready) return 0;
        uint64 until = l.vouchedAt + grace;
        if (until > l.end) until = l.end;
        if (until > _now()) until = _now();
        uint256 earned = _rentUp(l.priceE6, until - l.start);
        return earned < l.escrow ? uint128(earned) : l.escrow;
    }

    function _rentUp(uint64 priceE6, uint64 time) private pure returns (uint256) {
        return Math.ceilDiv(uint256(priceE6) * time, E6);
    }

    function _now() private view returns (uint64) { return uint64(block.timestamp); }
}
