// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {SignerDouble} from "./Doubles.sol";
import {World} from "./World.sol";

/// What the tests use of Safe 1.5.0, deployed from its published bytecode.
interface ISafeWallet {
    function setup(
        address[] calldata owners, uint256 threshold, address to, bytes calldata data, address fallbackHandler,
        address paymentToken, uint256 payment, address payable paymentReceiver
    ) external;
    function nonce() external view returns (uint256);
    function getMessageHash(bytes calldata message) external view returns (bytes32);
    function getTransactionHash(
        address to, uint256 value, bytes calldata data, uint8 operation, uint256 safeTxGas, uint256 baseGas,
        uint256 gasPrice, address gasToken, address refundReceiver, uint256 nonce
    ) external view returns (bytes32);
    function execTransaction(
        address to, uint256 value, bytes calldata data, uint8 operation, uint256 safeTxGas, uint256 baseGas,
        uint256 gasPrice, address gasToken, address payable refundReceiver, bytes calldata signatures
    ) external payable returns (bool);
}

interface ISafeFactory {
    function createProxyWithNonce(address singleton, bytes calldata initializer, uint256 salt) external returns (address);
}

/// A Safe, 2 of 3, as the quorum; contracts among stewards.
contract SafeTest is World {
    address private singleton;
    address private handler;
    ISafeFactory private safes;
    ISafeWallet private safe;

    function setUp() public override {
        super.setUp();
        singleton = published("Safe.sol/Safe");
        handler = published("handler/CompatibilityFallbackHandler.sol/CompatibilityFallbackHandler");
        safes = ISafeFactory(published("proxies/SafeProxyFactory.sol/SafeProxyFactory"));
        safe = makeSafe(stewards, 2);
        treasury = create(safeBirth());
        usdc.mint(address(treasury), SEED);
        vm.prank(creator);
        treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        makeReady(1);
        vm.prank(creator);
        treasury.activate(1);
    }

    function published(string memory path) private returns (address made) {
        string memory folder = "node_modules/@safe-global/safe-smart-account/build/artifacts/contracts/";
        bytes memory code = vm.getCode(string.concat(folder, path, ".json"));
        assembly {
            made := create(0, add(code, 32), mload(code))
        }
        yes(made != address(0), path);
    }

    function makeSafe(address[] memory people, uint256 threshold) private returns (ISafeWallet) {
        bytes memory setup = abi.encodeCall(
            ISafeWallet.setup, (people, threshold, address(0), "", handler, address(0), 0, payable(address(0)))
        );
        return ISafeWallet(safes.createProxyWithNonce(singleton, setup, uint256(keccak256(abi.encode(people, threshold)))));
    }

    function safeBirth() private view returns (ITreasury.Birth memory b) {
        b = birth();
        b.stewards = new address[](1);
        b.stewards[0] = address(safe);
        b.threshold = 1;
    }

    /// The owners whose bit is set sign `digest` for the Safe; a steward's signature is the Safe's address and theirs.
    function bySafe(uint8 who, bytes32 digest) private view returns (bytes memory all) {
        bytes32 message = safe.getMessageHash(abi.encode(digest));
        all = abi.encodePacked(address(safe));
        for (uint256 i = 0; i < 3; ++i) {
            if (who & (1 << i) != 0) all = bytes.concat(all, rsv(stewardKeys[i], message));
        }
    }

    function rsv(uint256 key, bytes32 digest) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, digest);
        return abi.encodePacked(r, s, v);
    }

    function digestOf(bytes32 structHash) private view returns (bytes32) {
        return keccak256(abi.encodePacked("\x19\x01", domain(), structHash));
    }

    function approveSafe(uint8 who, string memory action, uint256 argument)
        private
        view
        returns (ITreasury.Approval memory a)
    {
        a.deadline = uint64(block.timestamp + 1 hours);
        a.signatures = new bytes[](1);
        a.signatures[0] = bySafe(who, digestOf(orderHash(action, argument, treasury.state().orderNonce, a.deadline)));
    }

    function owners(uint8 who) private pure returns (uint256) {
        return (who & 1) + ((who >> 1) & 1) + ((who >> 2) & 1);
    }

    // ------------------------------------------------------------------ the Safe as the quorum

    function test_two_of_three_owners_order(uint8 who) public {
        who = who % 8;
        ITreasury.Approval memory a = approveSafe(who, "pause", 0);
        // Without any signature the handler asks for an on-chain message, and there is none: refused too.
        if (owners(who) < 2) refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
        yes(treasury.state().paused == (owners(who) >= 2), "paused by two");
        if (owners(who) < 2) return;
        refuses(ITreasury.IsPaused.selector);
        treasury.pause(a);
        treasury.resume(approveSafe(who, "resume", 0));
        refuses(ITreasury.BadQuorum.selector); // used up
        treasury.pause(a);
    }

    function test_an_owner_alone_or_a_stranger_is_no_steward(uint256 key) public {
        key = bound(key, 1, type(uint128).max);
        ITreasury.Approval memory a = approveSafe(3, "pause", 0);
        bytes32 digest = digestOf(orderHash("pause", 0, 0, a.deadline));
        a.signatures[0] = rsv(stewardKeys[0], digest);
        refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
        a.signatures[0] = abi.encodePacked(address(safe), rsv(key, safe.getMessageHash(abi.encode(digest))));
        refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
        // The same signatures twice are one Safe once.
        a = approveSafe(3, "pause", 0);
        bytes memory good = a.signatures[0];
        a.signatures = new bytes[](2);
        (a.signatures[0], a.signatures[1]) = (good, good);
        refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
    }

    function test_a_safes_order_is_for_one_action(uint256 other) public {
        vm.assume(other != 0);
        ITreasury.Approval memory a = approveSafe(3, "evict", other);
        refuses(ITreasury.BadQuorum.selector);
        treasury.evict(0, a);
        treasury.evict(0, approveSafe(3, "evict", 0));
        eq(operator(), address(0), "nobody");
    }

    function test_a_strangers_contract_is_never_asked(address who) public {
        vm.assume(who != address(safe));
        ITreasury.Approval memory a = approveSafe(3, "pause", 0);
        a.signatures[0] = abi.encodePacked(who, "yes, of course");
        refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
        a.signatures[0] = abi.encodePacked(address(new SignerDouble(stranger)), "yes, of course");
        refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
    }

    function test_a_safe_acknowledges_checkpoints_and_rescues() public {
        ITreasury.State memory s = treasury.state();
        bytes[] memory acks = new bytes[](1);
        acks[0] = bySafe(5, digestOf(ackHash(s.epoch, 1, "one", 0)));
        vm.prank(nodeKey(1));
        treasury.commit(1, "one", 0, acks);
        eq(treasury.state().checkpointSeq, 1, "committed");
        skip(6 hours + 1);
        treasury.rescue(offerB, TERM, 1e5, approveSafe(6, "rescue", rescueArgument(offerB, TERM, 1e5)));
        makeReady(2);
        vm.prank(nodeKey(2));
        treasury.takeover();
        eq(operator(), nodeKey(2), "rescued");
    }

    function test_a_safe_challenges_by_a_transaction_of_its_own() public {
        bytes memory call_ = abi.encodeCall(ITreasury.challenge, ());
        bytes32 hash = safe.getTransactionHash(
            address(treasury), 0, call_, 0, 0, 0, 0, address(0), address(0), safe.nonce()
        );
        bytes memory by = bytes.concat(rsv(stewardKeys[0], hash), rsv(stewardKeys[2], hash));
        safe.execTransaction(address(treasury), 0, call_, 0, 0, 0, 0, address(0), payable(address(0)), by);
        yes(treasury.state().challengedAt != 0, "challenged");
        refuses(ITreasury.NotSteward.selector);
        vm.prank(stewards[0]);
        treasury.challenge();
    }

    function test_a_safe_beside_plain_keys_counts_as_one(bool safeFirst) public {
        ITreasury.Birth memory b = birth();
        b.manifest = "mixed";
        b.stewards = new address[](2);
        (b.stewards[0], b.stewards[1]) = (address(safe), vm.addr(0xAAA1));
        bool ascending = b.stewards[0] < b.stewards[1];
        if (!ascending) (b.stewards[0], b.stewards[1]) = (b.stewards[1], b.stewards[0]);
        treasury = create(b);
        usdc.mint(address(treasury), SEED);
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerB, TERM, 1);
        makeReady(lease);
        vm.prank(creator);
        treasury.activate(lease);
        ITreasury.Approval memory a = approveSafe(3, "pause", 0);
        refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
        bytes memory plain = rsv(0xAAA1, digestOf(orderHash("pause", 0, 0, a.deadline)));
        bytes memory safes_ = a.signatures[0];
        a.signatures = new bytes[](2);
        bool inOrder = safeFirst == ascending;
        (a.signatures[0], a.signatures[1]) = safeFirst ? (safes_, plain) : (plain, safes_);
        if (!inOrder) refuses(ITreasury.BadQuorum.selector);
        treasury.pause(a);
    }

    // ------------------------------------------------------------------ what a birth must satisfy

    function refusedBirth(ISafeWallet only_, bytes4 why) private {
        ITreasury.Birth memory b = safeBirth();
        b.manifest = "another";
        b.stewards[0] = address(only_);
        refuses(why);
        vm.prank(creator);
        factory.create(b);
    }

    function test_a_safe_that_one_owner_commands_is_no_quorum() public {
        refusedBirth(makeSafe(stewards, 1), ITreasury.BadQuorum.selector);
    }

    function test_the_creator_is_no_owner_of_the_safe() public {
        address[] memory with = new address[](3);
        (with[0], with[1], with[2]) = (creator, stewards[0], stewards[1]);
        refusedBirth(makeSafe(with, 2), ITreasury.BadStewards.selector);
    }

    function test_a_single_key_is_no_quorum(address only_) public {
        vm.assume(only_.code.length == 0 && only_ != creator && only_ != address(0));
        refusedBirth(ISafeWallet(only_), ITreasury.BadQuorum.selector);
    }
}
