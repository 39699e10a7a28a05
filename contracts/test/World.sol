// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury, ITreasuryFactory} from "../src/interfaces/ITreasury.sol";
import {Cheats} from "./Cheats.sol";

/// What the tests use of the development token.
interface IUsdc {
    function mint(address to, uint256 value) external;
    function setFrozen(address account, bool frozen) external;
    function balanceOf(address who) external view returns (uint256);
    function transfer(address to, uint256 value) external returns (bool);
    function approve(address spender, uint256 value) external returns (bool);
    function totalSupply() external view returns (uint256);
    function decimals() external view returns (uint8);
    function name() external view returns (string memory);
    function version() external view returns (string memory);
    function DOMAIN_SEPARATOR() external view returns (bytes32);
    function authorizationState(address authorizer, bytes32 nonce) external view returns (bool);
    function transferWithAuthorization(
        address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, uint8 v,
        bytes32 r, bytes32 s
    ) external;
    function transferWithAuthorization(
        address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce,
        bytes memory signature
    ) external;
    function receiveWithAuthorization(
        address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce, uint8 v,
        bytes32 r, bytes32 s
    ) external;
    function receiveWithAuthorization(
        address from, address to, uint256 value, uint256 validAfter, uint256 validBefore, bytes32 nonce,
        bytes memory signature
    ) external;
    function cancelAuthorization(address authorizer, bytes32 nonce, uint8 v, bytes32 r, bytes32 s) external;
    function cancelAuthorization(address authorizer, bytes32 nonce, bytes memory signature) external;

    error AuthorizationNotYetValid(uint256 validAfter);
    error AuthorizationExpired(uint256 validBefore);
    error AuthorizationUsedOrCanceled(address authorizer, bytes32 nonce);
    error CallerMustBePayee();
    error InvalidSignature();
    error AccountFrozen(address account);
}

/// @title A world with one agent: token, market, two providers, three stewards (two of them make a quorum).
/// Leases 1 (provider A, active) and 2 (provider B, standby) exist once `live` and `standby` were called.
abstract contract World is Cheats {
    uint64 internal constant PRICE = 4e6; // 4 micro-USDC a second: about 10 USDC a month
    uint32 internal constant DAY = 1 days;
    uint32 internal constant TERM = 10 days;
    uint32 internal constant READY_WITHIN = 900;
    uint32 internal constant GRACE = 4 hours;
    uint32 internal constant DROP_AFTER = 8 hours;
    uint256 internal constant STAKE = 50e6;
    uint256 internal constant SEED = 100e6;
    uint128 internal constant PREPAY_MAX = 4 * 2 * 86400; // PRICE for two days
    bytes32 internal constant CODE = keccak256("code");

    address internal creator = address(0xC0FFEE);
    address internal beneficiary = address(0xBEEF);
    address internal stranger = address(0x5EED);
    address internal relay = address(0x4E1A);
    address internal providerA = address(0xA11);
    address internal providerB = address(0xB11);
    address internal providerC = address(0xC11);
    uint256 internal constant CUSTOMER_KEY = 0xC057;
    address internal customer;

    IUsdc internal usdc;
    ILeaseMarket internal market;
    ITreasuryFactory internal factory;
    ITreasury internal treasury;
    uint256[3] internal stewardKeys; // ascending by address
    address[] internal stewards;
    uint256 internal offerA;
    uint256 internal offerB;
    uint256 internal offerC;

    function setUp() public virtual {
        vm.warp(1_800_000_000);
        usdc = IUsdc(deploy("TestUSDC", ""));
        market = ILeaseMarket(
            deploy("LeaseMarket", abi.encode(address(usdc), STAKE, READY_WITHIN, GRACE, DROP_AFTER))
        );
        factory = ITreasuryFactory(deploy("TreasuryFactory", abi.encode(deploy("Oversight", ""))));
        customer = vm.addr(CUSTOMER_KEY);
        usdc.mint(customer, 1_000_000e6);
        makeStewards();
        offerA = provider(providerA, PRICE);
        offerB = provider(providerB, PRICE);
        offerC = provider(providerC, PRICE);
        vm.deal(creator, 10 ether);
    }

    // ------------------------------------------------------------------ people

    function makeStewards() private {
        for (uint256 i = 0; i < 3; ++i) {
            stewardKeys[i] = 0x57E0 + i;
        }
        for (uint256 i = 0; i < 3; ++i) {
            for (uint256 j = i + 1; j < 3; ++j) {
                if (vm.addr(stewardKeys[j]) < vm.addr(stewardKeys[i])) {
                    (stewardKeys[i], stewardKeys[j]) = (stewardKeys[j], stewardKeys[i]);
                }
            }
        }
        for (uint256 i = 0; i < 3; ++i) {
            stewards.push(vm.addr(stewardKeys[i]));
        }
    }

    function provider(address who, uint64 priceE6) internal returns (uint256 offer) {
        usdc.mint(who, STAKE);
        vm.prank(who);
        usdc.approve(address(market), type(uint256).max);
        vm.prank(who);
        market.register(STAKE);
        vm.prank(who);
        offer = market.postOffer(priceE6, 4, 1 days, 30 days, 4096, 2000, 0, "http://provider", "abuse@provider");
    }

    /// The node key that the provider of `lease` brings up in these tests.
    function nodeKey(uint256 lease) internal pure returns (address) {
        return address(uint160(0x40DE0000 + lease));
    }

    // ------------------------------------------------------------------ the agent's life so far

    function birth() internal view returns (ITreasury.Birth memory b) {
        b.creator = creator;
        b.token = address(usdc);
        b.market = address(market);
        b.beneficiary = beneficiary;
        b.stewards = stewards;
        b.threshold = 2;
        b.codeHash = CODE;
        b.manifest = keccak256("manifest");
        b.mandateUntil = uint64(block.timestamp + 90 days);
        b.policy = ITreasury.Policy({
            dayLimit: 5e6, priceE6Max: 10e6, termMax: 30 days, prepayMax: 2 days, gasDayMax: 0.3 ether,
            gasTarget: 0.1 ether, starveFloor: 2e6
        });
        b.timers = ITreasury.Timers({
            day: DAY, heartbeatEvery: 1 hours, fence: 2 hours, answerTime: 3 hours, handoverNotice: 10 minutes,
            restoreTimeout: 1 hours, silence: 6 hours, starveTimeout: 2 days, activateWithin: 1 days, refundWindow: 3 days
        });
        b.options = options();
    }

    /// Nothing of it, as in most lives so far; the tests of each option switch it on.
    function options() internal view virtual returns (ITreasury.Options memory o) {}

    function create(ITreasury.Birth memory b) internal returns (ITreasury made) {
        vm.prank(b.creator);
        return ITreasury(payable(factory.create{value: 1 ether}(b)));
    }

    /// Born, seeded, not yet activated.
    function born() internal {
        treasury = create(birth());
        usdc.mint(address(treasury), SEED);
    }

    function makeReady(uint256 lease) internal virtual {
        vm.prank(market.leaseOf(lease).provider);
        market.ready(lease, nodeKey(lease), "http://node", 0);
    }

    /// Alive on lease 1 at provider A, with one day of rent prepaid.
    function live() internal {
        born();
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        makeReady(lease);
        vm.prank(creator);
        treasury.activate(lease);
    }

    /// A ready standby at `offer`, with one day of rent prepaid.
    function standby(uint256 offer) internal returns (uint256 lease) {
        vm.prank(operator());
        lease = treasury.rent(offer, TERM, PREPAY_MAX / 2);
        makeReady(lease);
    }

    function announceAndWait(uint256 lease) internal {
        vm.prank(operator());
        treasury.announce(lease);
        skip(10 minutes);
    }

    function handTo(uint256 lease) internal {
        announceAndWait(lease);
        uint64 seq = treasury.state().checkpointSeq;
        vm.prank(operator());
        treasury.handover(lease, seq, 0, uint64(block.timestamp));
    }

    function operator() internal view returns (address) {
        return treasury.state().operator;
    }

    function beat() internal {
        vm.prank(operator());
        treasury.heartbeat("instance", "root", true);
    }

    function skip(uint256 time) internal {
        vm.warp(block.timestamp + time);
    }

    function challengeUnanswered() internal {
        vm.prank(stewards[0]);
        treasury.challenge();
        skip(3 hours + 1);
    }

    /// An answered challenge is over, lease 2's node key is operator, and it is restoring.
    function takenOver() internal {
        live();
        standby(offerB);
        challengeUnanswered();
        vm.prank(nodeKey(2));
        treasury.takeover();
    }

    function windingDown() internal {
        treasury.stop(approve("stop", 0));
        treasury.windDown();
    }

    /// What a quorum signs to rescue onto `offer`.
    function rescueArgument(uint256 offer, uint32 term, uint128 prepay) internal pure returns (uint256) {
        return offer + (uint256(term) << 64) + (uint256(prepay) << 96);
    }

    function approveRescue(uint256 offer, uint32 term, uint128 prepay) internal view returns (ITreasury.Approval memory) {
        return approve("rescue", rescueArgument(offer, term, prepay));
    }

    // ------------------------------------------------------------------ signatures

    function signed(uint256 key, bytes32 separator, bytes32 structHash) internal pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, keccak256(abi.encodePacked("\x19\x01", separator, structHash)));
        return abi.encodePacked(r, s, v);
    }

    function orderHash(string memory action, uint256 argument, uint256 nonce, uint64 deadline)
        internal
        pure
        returns (bytes32)
    {
        // Spelled out once more, so that a change of the type string in the contract shows.
        bytes32 kind = keccak256("Order(string action,uint256 argument,uint256 nonce,uint64 deadline)");
        return keccak256(abi.encode(kind, keccak256(bytes(action)), argument, nonce, deadline));
    }

    /// The domain as the EIP-712 standard builds it, not as the contract reports it.
    function domain() internal view returns (bytes32) {
        return keccak256(
            abi.encode(
                keccak256("EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"),
                keccak256("Vivarium Treasury"), keccak256("1"), block.chainid, address(treasury)
            )
        );
    }

    /// Signed by the stewards whose bit is set in `who`, in ascending order.
    function approveBy(uint8 who, string memory action, uint256 argument)
        internal
        view
        returns (ITreasury.Approval memory a)
    {
        a.deadline = uint64(block.timestamp + 1 hours);
        bytes32 hash = orderHash(action, argument, treasury.state().orderNonce, a.deadline);
        a.signatures = signaturesBy(who, hash);
    }

    function signaturesBy(uint8 who, bytes32 hash) internal view returns (bytes[] memory signatures) {
        uint256 count = (who & 1) + ((who >> 1) & 1) + ((who >> 2) & 1);
        signatures = new bytes[](count);
        uint256 next = 0;
        for (uint256 i = 0; i < 3; ++i) {
            if (who & (1 << i) != 0) signatures[next++] = signed(stewardKeys[i], domain(), hash);
        }
    }

    function approve(string memory action, uint256 argument) internal view returns (ITreasury.Approval memory) {
        return approveBy(3, action, argument);
    }

    function ackHash(uint64 epoch, uint64 seq, bytes32 digest, bytes32 prev) internal pure returns (bytes32) {
        bytes32 kind = keccak256("Ack(uint64 epoch,uint64 seq,bytes32 digest,bytes32 prev)");
        return keccak256(abi.encode(kind, epoch, seq, digest, prev));
    }

    /// Commits the next checkpoint, acknowledged by two stewards.
    function commitNext(bytes32 digest) internal {
        ITreasury.State memory s = treasury.state();
        bytes[] memory acks = signaturesBy(3, ackHash(s.epoch, s.checkpointSeq + 1, digest, s.checkpointDigest));
        vm.prank(s.operator);
        treasury.commit(s.checkpointSeq + 1, digest, s.checkpointDigest, acks);
    }

    function authorization(uint256 key, address to, uint256 value, bytes32 nonce) internal view returns (bytes memory) {
        return authorizationOf(vm.addr(key), key, to, value, nonce);
    }

    /// Of `from`, signed by `key`.
    function authorizationOf(address from, uint256 key, address to, uint256 value, bytes32 nonce)
        internal
        view
        returns (bytes memory)
    {
        bytes32 kind = keccak256(
            "TransferWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
        );
        bytes32 hash = keccak256(abi.encode(kind, from, to, value, 0, type(uint256).max, nonce));
        return signed(key, usdc.DOMAIN_SEPARATOR(), hash);
    }

    /// The customer pays `value`, settled by the relay.
    function settle(uint256 value, bytes32 nonce) internal {
        bytes memory signature = authorization(CUSTOMER_KEY, address(treasury), value, nonce);
        vm.prank(relay);
        treasury.settleExact(customer, value, 0, type(uint256).max, nonce, signature);
    }

    // ------------------------------------------------------------------ refusals

    function refuses(bytes4 selector) internal {
        vm.expectPartialRevert(selector);
    }

    function refuses(bytes memory data) internal {
        vm.expectRevert(data);
    }
}
