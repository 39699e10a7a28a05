// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

/// @title The body of one agent: its money, its policy, who acts for it.
interface ITreasury {
    enum Stage { Unborn, Alive, Stopped, WindingDown, Closed }

    /// Limits fixed at birth. Money in micro-USDC, gas in wei, time in seconds.
    struct Policy {
        uint128 dayLimit;        // gross commitments in any `Timers.day`
        uint64 priceE6Max;       // price cap of a lease, micro-USDC x 1e-6 per second
        uint32 termMax;          // <= 30 `day`s
        uint32 prepayMax;        // seconds of rent in escrow ahead of now (2 `day`s)
        uint128 gasDayMax;       // wei that refuel may pay out in any `day`
        uint128 gasTarget;       // wei: refuel tops operator and relay up to this
        uint128 starveFloor;     // micro-USDC: balance + escrow under it means starved
    }

    /// Checked at birth: heartbeatEvery < fence < answerTime, answerTime + restoreTimeout <= market.grace(),
    /// grace <= dropAfter, all >= 3 s; BadTimers(name) tells the failing pair.
    struct Timers {
        uint32 day;              // 86400, or the scaled day of a development world
        uint32 heartbeatEvery;
        uint32 fence;            // a node without a fresh block in which it is operator stops itself
        uint32 answerTime;       // to answer a challenge
        uint32 handoverNotice;   // announce at least this long before handover
        uint32 restoreTimeout;   // after takeover; then another may supersede
        uint32 silence;          // without a heartbeat: rescue is allowed
        uint32 starveTimeout;
        uint32 activateWithin;
        uint32 refundWindow;     // from windDown to the earliest close
    }

    struct Birth {
        address creator;
        address token;
        address market;
        address beneficiary;
        address[] stewards;      // strictly ascending, no creator, no zero
        uint8 threshold;         // 1 <= k <= n, k >= 2 when n >= 2
        bytes32 codeHash;        // sha2-256 digest of the code directory's root block (CIDv1 dag-pb)
        bytes32 manifest;        // sha2-256 digest of the manifest (CIDv1 raw)
        uint64 mandateUntil;     // chain seconds; past it anyone may windDown
        Policy policy;
        Timers timers;
    }

    /// k steward signatures over the EIP-712 struct
    /// Order(string action,uint256 argument,uint256 nonce,uint64 deadline), domain {"Vivarium Treasury","1",chainId,treasury}.
    /// Signatures ascend by signer; `nonce` = orderNonce(), used up by each order.
    struct Approval { uint64 deadline; bytes[] signatures; }

    struct State {
        Stage stage;
        bool paused;
        bool restoring;
        address operator;        // 0: nobody
        address relay;
        uint64 epoch;
        uint256 activeLease;     // 0: none
        uint256 standbyLease;    // 0: none
        uint256 drainingLease;   // 0: none; the lease that was active before the last handover
        uint256 announcedLease;
        uint64 announcedAt;
        uint64 checkpointSeq;    // last acknowledged
        bytes32 checkpointDigest;// sha2-256 of the checkpoint object (CIDv1 raw)
        uint64 lastHeartbeat;    // chain seconds
        uint64 challengedAt;     // 0: no open challenge
        uint64 takenOverAt;
        uint64 windDownAt;       // 0: not winding down
        uint64 mandateUntil;
        uint256 orderNonce;
        uint128 spentInDay;      // of policy.dayLimit, right now
        uint256 balance;         // token balance
        uint256 escrow;          // escrow less accrued rent, all open leases
        bytes32 codeHash;
        bytes32 manifest;
        bytes32 receiptsRoot;
    }

    event Born(address indexed creator, bytes32 manifest, bytes32 codeHash, address beneficiary, uint64 mandateUntil);
    event BirthAborted(address indexed creator, uint256 amount);
    event Activated(uint256 indexed lease, address indexed operator);
    event Rented(uint256 indexed lease, uint256 indexed offer, uint32 term, uint128 prepay);
    event ToppedUp(uint256 indexed lease, uint128 amount);
    event Released(uint256 indexed lease, uint128 refund);
    event Heartbeat(uint64 indexed epoch, bytes32 instance, bytes32 receiptsRoot);
    event Committed(uint64 indexed seq, bytes32 digest, bytes32 prev);
    event Announced(uint256 indexed lease);
    event HandedOver(uint64 indexed epoch, uint256 indexed lease, address indexed operator, uint64 seq, uint64 cut);
    event Challenged(address indexed by, uint64 deadline);
    event ChallengeAnswered();
    event TakenOver(uint64 indexed epoch, uint256 indexed lease, address indexed operator, bytes32 digest);
    event Restored(uint64 indexed epoch, bytes32 digest);
    event ExactSettled(address indexed payer, bytes32 indexed nonce, uint256 amount);
    event ExactRefunded(address indexed payer, bytes32 indexed nonce, uint256 amount);
    event RelaySet(address indexed relay);
    event Refueled(address indexed to, uint256 amountWei);
    event Paused();
    event Resumed();
    event Stopped();
    event Evicted(uint64 indexed epoch, uint256 keep, address operator);
    event Rescued(uint256 indexed lease, uint256 indexed offer);
    event MandateExtended(uint64 until);
    event WindDownBegun(uint64 earliestClose);
    event Closed(uint256 balance);
    event Withdrawn(address indexed beneficiary, uint256 amount);

    error NotCreator();
    error NotOperator();
    error NotNodeKey();
    error NotSteward();
    error BadQuorum();
    error BadStewards();
    error BadTimers(string pair);
    error WrongStage(Stage stage);
    error IsPaused();
    error IsRestoring();
    error TooEarly(uint64 until);
    error TooLate(uint64 since);
    error NotReady(uint256 lease);
    error WrongCode();
    error SlotTaken();
    error SameOwner();
    error Barred(address provider);
    error OverDayLimit(uint256 left);
    error OverPriceCap();
    error OverTerm();
    error OverPrepay();
    error BadSequence(uint64 expected);
    error BadPrevious();
    error NotAnnounced();
    error NotStarved();
    error OverRecorded(uint256 recorded);
    error NotBeneficiary();
    error ShortReceipt();
    error AlreadyBorn();

    // --- birth: the creator, once each ---
    function initialize(Birth calldata birth) external payable;     // by the factory, in the creating transaction
    function birthRent(uint256 offer, uint32 term, uint128 prepay) external returns (uint256 lease);
    function activate(uint256 lease) external;                      // operator = its node key, epoch 1, creator forgotten
    function abortBirth() external;                                 // anyone past activateWithin: seed and gas back to the creator

    // --- rent: the operator ---
    function rent(uint256 offer, uint32 term, uint128 prepay) external returns (uint256 lease); // into the standby slot
    function topUp(uint256 lease, uint128 amount) external;
    function release(uint256 lease) external;                       // standby or draining: close it, escrow back (a reclaimable one is reclaimed)

    // --- life: the operator ---
    function heartbeat(bytes32 instance, bytes32 receiptsRoot, bool standbyAnswered) external;
    function commit(uint64 seq, bytes32 digest, bytes32 prev, bytes[] calldata acks) external; // acks: EIP-712 Ack(uint64 epoch,uint64 seq,bytes32 digest,bytes32 prev), ascending by signer
    function announce(uint256 lease) external;
    function handover(uint256 lease, uint64 seq, uint64 cut, uint64 validUntil) external;
    function setRelay(address relay) external;

    // --- when the operator is silent ---
    function challenge() external;                                  // standby's node key or one steward
    function takeover() external;                                   // standby's node key after an unanswered challenge; a rescued lease's node key without one

    // --- income ---
    function settleExact(address payer, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes calldata signature) external; // anyone
    function refundExact(address payer, bytes32 nonce, uint256 amount) external; // operator
    function recorded(address payer, bytes32 nonce) external view returns (uint256 amount, uint256 refunded);

    // --- gas ---
    function refuel() external;                                     // anyone: tops operator and relay up
    receive() external payable;

    // --- stewards: a quorum, relayed by anyone ---
    function pause(Approval calldata a) external;                   // Order("pause",0,..)
    function resume(Approval calldata a) external;
    function stop(Approval calldata a) external;
    function evict(uint256 keep, Approval calldata a) external;     // Order("evict",keep,..); 0: none
    function rescue(uint256 offer, uint32 term, uint128 prepay, Approval calldata a) external; // Order("rescue",offer,..)
    function extendMandate(uint64 until, Approval calldata a) external;

    // --- the end: anyone ---
    function windDown() external;
    function close() external;
    function sweep() external;                                      // Closed: late arrivals become withdrawable
    function withdraw() external;                                   // the beneficiary pulls

    // --- views ---
    function state() external view returns (State memory);
    function birthOf() external view returns (Birth memory);        // creator reads as zero after activate
    function ORDER_TYPEHASH() external view returns (bytes32);
    function ACK_TYPEHASH() external view returns (bytes32);
    function domainSeparator() external view returns (bytes32);
}

interface ITreasuryFactory {
    event Created(address indexed treasury, address indexed creator);
    /// The salt commits to the caller and every field of `birth`. msg.value is the agent's first gas.
    function create(ITreasury.Birth calldata birth) external payable returns (address treasury);
    function predict(ITreasury.Birth calldata birth) external view returns (address treasury);
    function implementation() external view returns (address);
}
