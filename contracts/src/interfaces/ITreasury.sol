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

    /// What `spend` buys. Money for the purse is spent from there by the operator's signature (EIP-3009 only).
    enum Kind { Storage, Tools, Purse }

    /// Why anyone may wind down. Frozen: the token refuses to move what is here.
    enum Reason { None, Stopped, MandateOver, Starved, Frozen }

    struct Payee {
        Kind kind;               // Storage or Tools
        address payee;
        uint128 dayMax;          // micro-USDC to this payee in any `Timers.day`
    }

    /// Where `buyGas` buys: a pool of Uniswap v3 behind SwapRouter02, priced by a feed of Chainlink's kind.
    struct GasMarket {
        address router;          // 0: off
        address weth;
        address oracle;          // USD per ETH
        address sequencer;       // the chain's uptime feed; 0 where there is no sequencer
        uint24 poolFee;          // which pool, in hundredths of a basis point
        uint16 slippageBps;      // <= 1000
        uint32 staleAfter;       // seconds; an older price is none
    }

    /// What a birth may add. All zero: nothing of it, for ever.
    struct Options {
        Policy ceilings;         // what `loosen` can reach at most; dayLimit 0: it reaches nothing
        Payee[] payees;          // the only ones that `spend` pays, besides the purse
        GasMarket gas;
        address channels;        // the x402 batch-settlement contract
        uint32 withdrawDelay;    // seconds: the shortest of the channels that the agent serves
        uint32 delay;            // seconds that new code, loosening and new stewards wait, >= day; 0: never allowed
        uint32 silenceBlocks;    // silence also lasts so many blocks: a chain that stood still accuses nobody
        uint128 purseMax;        // micro-USDC in the purse at once; 0: no purse
        uint128 relayMax;        // wei that come back at most to whoever relays an order or a takeover
        uint128 dutyPay;         // micro-USDC to each steward that acknowledged a checkpoint
        uint128 dutyDayMax;      // of that in any `Timers.day`, all stewards together
        address identity;        // the ERC-8004 identity registry; 0: off
        uint8 rescueThreshold;   // so many of `rescuers` may `rescue` without the quorum; 0: nobody may
        address[] rescuers;      // keys of the stewards' daemons; the rules of `stewards` and `threshold` hold
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
        Options options;
    }

    /// A channel of the x402 batch-settlement contract.
    struct ChannelConfig {
        address payer;
        address payerAuthorizer;
        address receiver;
        address receiverAuthorizer;
        address token;
        uint40 withdrawDelay;
        bytes32 salt;
    }

    struct Voucher {
        ChannelConfig channel;
        uint128 maxClaimableAmount;
    }

    struct VoucherClaim {
        Voucher voucher;
        bytes signature;
        uint128 totalClaimed;
    }

    /// k steward signatures over the EIP-712 struct Order(string action,uint256 argument,uint256 nonce,uint64
    /// deadline), domain {"Vivarium Treasury","1",chainId,treasury}. Signatures ascend by signer; `nonce` =
    /// orderNonce(), used up by each order.
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

    /// What `state` has no room for.
    struct Standing {
        address purse;           // 0: none
        uint64 hibernateUntil;   // chain seconds; 0: awake
        uint64 starveNoticeAt;   // 0: no notice
        bool refundsOpen;
        uint256 unsettled;       // micro-USDC claimed from channels and not fetched yet
        bool isRegistered;       // in the identity registry
        uint256 agentId;         // there, if so
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
    event ProviderBarred(address indexed provider);
    event BarCleared(address indexed provider);
    event ChannelsClaimed(uint256 claimed, uint256 skipped, uint256 amount);
    event ChannelRefunded(address indexed payer, bytes32 salt, uint128 amount);
    event Spent(Kind kind, address indexed payee, uint128 amount);
    event GasBought(uint256 paid, uint256 amountWei);
    event DutyPaid(address indexed steward, uint128 amount);
    event Repaid(address indexed relayer, uint256 amountWei);
    event Hibernated(uint64 indexed epoch, uint64 until);
    event Queued(string action, uint256 argument, uint64 from);
    event Tightened(Policy policy);
    event Loosened(Policy policy);
    event CodeRevoked(bytes32 codeHash);
    event CodeSet(bytes32 codeHash);
    event StewardsSet(address[] stewards, uint8 threshold);
    event RefundsOpened();
    event StarveNotice(Reason reason, uint64 from);
    event NoticeCancelled();
    event WindDownBegun(Reason reason, uint64 earliestClose);
    event TokenRefused(uint256 amount);
    event Closed(uint256 balance);
    event Withdrawn(address indexed beneficiary, uint256 amount);

    // --- errors: what a revert means ---
    error NotCreator();                   // the caller is not the creator, or the creator is forgotten
    error NotOperator();                  // the caller does not act for this epoch: stop, somebody else lives
    error NotNodeKey();                   // the caller is not the standby's node key
    error NotSteward();                   // neither a steward nor the standby's node key
    error NotBeneficiary();
    error NotFactory();
    error BadQuorum();                    // fewer than k good signatures, out of order, over something else, or used up
    error BadStewards();                  // not strictly ascending, zero, or the creator among them
    error BadTimers(string pair);         // the pair of timers that does not fit
    error BadPolicy();                    // a limit of zero that would make every spending impossible
    error WrongToken();                   // the market deals in another token
    error ZeroAddress();
    error ZeroAmount();
    error AlreadyBorn();
    error WrongStage(Stage stage);        // the stage it is in
    error IsPaused();
    error NotPaused();
    error IsRestoring();                  // only heartbeat and commit until the restored checkpoint is committed
    error TooEarly(uint64 until);         // chain seconds from which it is possible
    error TooLate(uint64 since);          // chain seconds after which it is not
    error NotOurLease(uint256 lease);     // not in the slot that this entry is about
    error NotReady(uint256 lease);        // requested, ended or past its term
    error WrongCode();                    // the lease runs other code
    error SlotTaken();                    // release the standby first
    error SameOwner();                    // the active lease has the same provider
    error Barred(address provider);       // evicted; `clearBar` clears
    error OverDayLimit(uint256 left);     // micro-USDC left today
    error OverPriceCap();
    error OverTerm();
    error OverPrepay();                   // more than prepayMax seconds of rent would be ahead
    error BadSequence(uint64 expected);   // the sequence number that fits
    error BadPrevious();                  // another checkpoint was acknowledged last
    error NotAnnounced();
    error KeyUsed(address nodeKey);       // this key was operator before: a key serves one epoch
    error NotChallenged();                // no open challenge
    error NotStarved();                   // it lives: not stopped, mandate not over, not poor and silent
    error OverRecorded(uint256 recorded); // micro-USDC of that payment that can still be refunded
    error NothingArrived();               // the token took the authorisation and brought nothing
    error Off();                          // birth did not switch this on
    error NotPayee(address payee);        // not among birth's payees of this kind
    error OverCeiling(uint256 left);      // micro-USDC left for this payee today, or room in the purse
    error NotOurChannel();                // another receiver or another token
    error BadPrice();                     // the feed is stale, the sequencer down or just back, or the price absurd
    error ShortSwap(uint256 got);         // wei: less than the oracle and slippageBps allow
    error LowGas();                       // too little for the identity registry's share: send more gas

    // --- birth: the creator, once each ---

    /// Who: the factory, in the creating transaction, after it checked timers, policy, options and token. Checks
    /// stewards and quorum.
    function initialize(Birth calldata birth, address purse) external payable;
    /// Who: the creator, while Unborn, once. Rents the first lease by `rent`'s rules; not counted in the day limit.
    function birthRent(uint256 offer, uint32 term, uint128 prepay) external returns (uint256 lease);
    /// Who: the creator, within activateWithin. The birth lease must be ready: its node key becomes operator of epoch 1
    /// and gets its first gas; the creator is forgotten.
    function activate(uint256 lease) external;
    /// Who: anyone, past activateWithin. Closes the birth lease; seed and gas go back to the creator.
    function abortBirth() external;

    // --- rent: the operator, alive, not paused, not restoring (release: also paused and to the end) ---

    /// Rents the standby. The provider is staked, not barred and not the active lease's; price, term, prepayment and
    /// day limit hold; the lease is for our code.
    function rent(uint256 offer, uint32 term, uint128 prepay) external returns (uint256 lease);
    /// Active, standby or draining lease; at most prepayMax seconds of rent ahead of now; counts in the day limit.
    function topUp(uint256 lease, uint128 amount) external;
    /// Closes the standby or the draining lease (winding down: the active one too); escrow less rent comes back.
    /// Requested past its time, that goes on the provider's record; if others ended it, the slot is cleared.
    function release(uint256 lease) external;

    // --- life: the operator ---

    /// Alive, Stopped or WindingDown, also paused. Answers an open challenge. Vouches for the active and draining lease
    /// and, if it answered, the standby; while restoring it does neither that nor break silence. A lease that ended is
    /// passed over.
    function heartbeat(bytes32 instance, bytes32 receiptsRoot, bool standbyAnswered) external;
    /// The same stages. `seq` is the last + 1, `prev` the last digest; `acks` are k steward signatures over the EIP-712
    /// struct Ack(uint64 epoch,uint64 seq,bytes32 digest,bytes32 prev) of this epoch, ascending by signer. Ends
    /// restoring.
    /// Pays each of these stewards dutyPay, within its cap and the day limit, while alive and not paused.
    function commit(uint64 seq, bytes32 digest, bytes32 prev, bytes[] calldata acks) external;
    /// Alive, also paused. The ready standby; again: the notice starts anew.
    function announce(uint256 lease) external;
    /// Alive, also paused. The announced standby, after the notice, up to validUntil, and `seq` is the last checkpoint.
    /// A new epoch: operator = its node key; the old lease drains, the one that drained before is closed; relay =
    /// nobody.
    function handover(uint256 lease, uint64 seq, uint64 cut, uint64 validUntil) external;
    /// The key that sends strangers' settlements. It has no role; `refuel` keeps it in gas.
    function setRelay(address relay) external;
    /// Who: anyone, from Alive to WindingDown, while somebody is operator. Registers this treasury in birth's ERC-8004
    /// identity registry, or changes its URI there: the active lease's endpoint as its provider posted it, and
    /// "/.well-known/agent-registration.json". Activation, handover, takeover and an eviction that keeps a lease do it too,
    /// with a bounded amount of gas and whatever comes of it; so this is for mending.
    function identify() external;
    /// ERC-721's question whether a token may be given to this contract. It may; nothing ever moves one from here.
    function onERC721Received(address, address, uint256, bytes calldata) external pure returns (bytes4);
    /// Like `rent`: alive, not paused, not restoring. Closes every lease; a new epoch with nobody as operator; until
    /// then (at most to the mandate's end) it is not starved. `rescue` wakes it. Storage is paid by `spend` before.
    function hibernate(uint64 until) external;

    // --- when the operator is silent ---

    /// Who: one steward or the ready standby's node key; Alive, also paused; one at a time, at most one per answerTime.
    /// Only a heartbeat answers it, and a late one counts as long as no takeover was mined before.
    function challenge() external;
    /// Who: the ready standby's node key once a challenge stayed unanswered past answerTime; a rescued one's at any
    /// time. A new epoch that begins restoring; old leases are closed; a pause is inherited.
    function takeover() external;
    /// Who: anyone, with the node key's signature over the EIP-712 struct Act(string action,uint256 lease,uint64
    /// epoch,uint64 nonce,uint64 deadline): action "challenge" or "takeover", lease = the standby, nonce =
    /// lastChallengeAt(). The same rules; a takeover's relayer is repaid up to relayMax.
    function challengeFor(uint64 deadline, bytes calldata signature) external;
    function takeoverFor(uint64 deadline, bytes calldata signature) external;

    // --- income ---

    /// Who: anyone; from Alive to WindingDown, also paused. Takes an EIP-3009 authorisation of `payer` to this treasury
    /// (ERC-1271 payers too) and records (payer, nonce) -> what arrived. What third parties settle at the token leaves
    /// no record.
    function settleExact(
        address payer, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, bytes calldata signature
    ) external;
    /// Who: the operator, not paused (unless refunds are open), not restoring. Only to that payer and only up to what is recorded less what was
    /// refunded. Alive: within the day limit. WindingDown: without.
    function refundExact(address payer, bytes32 nonce, uint256 amount) external;
    function recorded(address payer, bytes32 nonce) external view returns (uint256 amount, uint256 refunded);
    /// Who: the operator, from Alive to WindingDown, also paused, not restoring. Claims each voucher of our channels and
    /// settles. A row that the channel contract refuses is skipped and counted. Money can only arrive here.
    function claimAndSettle(VoucherClaim[] calldata claims) external;
    /// Who: the operator, not paused, not restoring, alive within the day limit; anyone once refunds are open: by
    /// `openRefunds`, or from a third of refundWindow after windDown. The channel contract pays the channel's payer out
    /// of the channel's own balance.
    function refundChannel(ChannelConfig calldata config, uint128 amount) external;

    // --- spending: the operator, alive, not paused, not restoring; counts in the day limit ---

    /// To a payee of birth's list within its own dayMax, or to the purse up to purseMax in all.
    function spend(Kind kind, address payee, uint128 amount) external;
    /// Buys ETH for at most `max` micro-USDC, and no more than a day's gas (gasDayMax) is missing. Reverts when the
    /// price is stale, the sequencer down or up for less than an hour, or the pool gives less than the price less
    /// slippageBps. Takes one USDC for one dollar.
    function buyGas(uint128 max) external returns (uint256 boughtWei);

    // --- gas ---

    /// Who: anyone, from Alive to WindingDown. Tops operator and relay up to gasTarget, within gasDayMax; never reverts
    /// for want of ETH.
    function refuel() external;
    receive() external payable;

    // --- stewards: a quorum, relayed by anyone, who is repaid up to relayMax ---

    /// Order("pause",0,..). Rent, spending and refunds stop, the purse is emptied; heartbeat, commit, moving, settling,
    /// claiming and release go on. A pause longer than the prepaid escrow loses the hosts: `resume`, then `rescue`.
    function pause(Approval calldata a) external;
    /// Order("resume",0,..). Closes refunds that `openRefunds` opened.
    function resume(Approval calldata a) external;
    /// Order("stop",0,..). Final: anyone may wind down from here.
    function stop(Approval calldata a) external;
    /// Order("evict",keep,..). At once: a new epoch, operator = the kept lease's node key (0: nobody), every other
    /// lease is closed and its provider barred, unless it is the kept one's. A kept key that was not operator must
    /// restore.
    function evict(uint256 keep, Approval calldata a) external;
    /// Order("rescue", offer | term << 64 | prepay << 96, ..). Alive, also paused; in silence, without operator, or when
    /// a restore timed out. `rent`'s rules, day limit included, but that the silent lease's own provider may be chosen;
    /// replaces any standby. While not paused, birth's `rescueThreshold` of `rescuers` may sign it instead of the quorum:
    /// the same words, nonce and deadline.
    function rescue(uint256 offer, uint32 term, uint128 prepay, Approval calldata a) external;
    /// Order("extendMandate",until,..). Alive; only later.
    function extendMandate(uint64 until, Approval calldata a) external;
    /// Order("clearBar",uint160(provider),..)
    function clearBar(address provider, Approval calldata a) external;
    /// Order("revokeCode",uint256(codeHash),..). At once: like `evict(0)` without barring anybody, and nothing can be
    /// rented until `setCode`.
    function revokeCode(Approval calldata a) external;
    /// Order("tighten",uint256(keccak256(abi.encode(policy))),..). At once; no limit above what it is now. Voids every
    /// queued order.
    function tighten(Policy calldata policy, Approval calldata a) external;
    /// Order("openRefunds",0,..). Refunds in a pause, and channels by anyone, until `resume`.
    function openRefunds(Approval calldata a) external;
    /// Order("setCode",uint256(codeHash),..). This and the next two are called twice: with the approval, which queues
    /// the order, and after `delay` by anyone with an empty one, which carries it out. Leases in use keep the code that
    /// they were rented for only as long as nobody moves.
    function setCode(bytes32 codeHash, Approval calldata a) external;
    /// Order("loosen",uint256(keccak256(abi.encode(policy))),..). Within birth's ceilings.
    function loosen(Policy calldata policy, Approval calldata a) external;
    /// Order("setStewards",uint256(keccak256(abi.encode(stewards, threshold))),..). Birth's rules hold, the creator
    /// stays excluded. Voids every other queued order, and nobody but the quorum may rescue any more.
    function setStewards(address[] calldata stewards, uint8 threshold, Approval calldata a) external;

    // --- the end: anyone ---

    /// When stopped, when the mandate is over, when starved (balance + escrow + unsettled claims under starveFloor) or
    /// when the token is frozen; the last two only in silence of starveTimeout, and the first call posts a notice: a
    /// second one, `Timers.silence` later, winds down. A heartbeat or a rescue cancels the notice; so does a call once
    /// money came. The operator itself need not wait, unless paused or restoring. Closes the standby.
    function windDown() external;
    /// refundWindow after windDown. Closes every lease, empties the purse, settles; nobody is operator.
    function close() external;
    /// Closed. Fetches what market, purse and channels still owe, for ever.
    function sweep() external;
    /// Who: the beneficiary, when Closed, as often as it likes: the whole balance, token and ETH. What a frozen token
    /// refuses stays for another time.
    function withdraw() external;
    /// What `windDown` would say to this caller now. Not a view, because it tries whether the token still moves: ask
    /// with eth_call.
    function windDownReason() external returns (Reason);

    // --- views ---

    function state() external view returns (State memory);
    /// As given at birth, but: the creator reads as zero after `activate`, mandateUntil as extended.
    function birthOf() external view returns (Birth memory);
    function ORDER_TYPEHASH() external view returns (bytes32);
    function ACK_TYPEHASH() external view returns (bytes32);
    function domainSeparator() external view returns (bytes32);
    function ACT_TYPEHASH() external view returns (bytes32);
    function isBarred(address provider) external view returns (bool);
    function standing() external view returns (Standing memory);
    /// Chain seconds of the last challenge, answered or not.
    function lastChallengeAt() external view returns (uint64);
    /// Whose signature the purse takes: the operator's; nobody's while paused, restoring or not alive.
    function purseSigner() external view returns (address);
    /// Wei of policy.gasDayMax, right now. A takeover's or an eviction's gas counts but is never refused.
    function gasSpentInDay() external view returns (uint128);
}

interface ITreasuryFactory {
    event Created(address indexed treasury, address indexed creator);
    /// The salt commits to the caller and every field of `birth`. msg.value is the agent's first gas.
    function create(ITreasury.Birth calldata birth) external payable returns (address treasury);
    /// Where `create` will put it, if called by birth.creator.
    function predict(ITreasury.Birth calldata birth) external view returns (address treasury);
    function implementation() external view returns (address);
}
