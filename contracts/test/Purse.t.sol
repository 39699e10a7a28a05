// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {IPurse} from "../src/interfaces/IPurse.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {ChannelDouble, EntryPointDouble, Permit2Double, SignerDouble, UniversalDouble} from "./Doubles.sol";
import {IUsdc, World} from "./World.sol";

/// The purse, and every way to make the treasury pay by signature.
contract PurseTest is World {
    uint256 private constant NODE_KEY = 0x40DE;
    uint256 private constant NEXT_KEY = 0x40DF;
    address private shop = address(0x5409);
    IPurse private purse;

    function setUp() public override {
        super.setUp();
        born();
        vm.prank(creator);
        treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        readyWith(1, NODE_KEY);
        vm.prank(creator);
        treasury.activate(1);
        purse = IPurse(treasury.standing().purse);
        fill(2e6);
    }

    function options() internal pure override returns (ITreasury.Options memory o) {
        o.purseMax = 3e6;
    }

    function readyWith(uint256 lease, uint256 key) private {
        vm.prank(market.leaseOf(lease).provider);
        market.ready(lease, vm.addr(key), "http://node", 0);
    }

    function fill(uint128 amount) private {
        vm.prank(operator());
        treasury.spend(ITreasury.Kind.Purse, address(purse), amount);
    }

    function structHash(string memory kind, address from, address to, uint256 value) private pure returns (bytes32) {
        string memory fields =
            "(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)";
        return keccak256(
            abi.encode(keccak256(bytes(string.concat(kind, fields))), from, to, value, 0, type(uint256).max, bytes32("n"))
        );
    }

    /// The purse's format around the operator's signature over a transfer.
    function signature(uint256 key, address to, uint256 value) private view returns (bytes memory) {
        bytes memory by =
            signed(key, usdc.DOMAIN_SEPARATOR(), structHash("TransferWithAuthorization", address(purse), to, value));
        return abi.encode(to, value, uint256(0), type(uint256).max, bytes32("n"), by);
    }

    function pay(uint256 key, uint256 value) private {
        bytes memory by = signature(key, shop, value);
        usdc.transferWithAuthorization(address(purse), shop, value, 0, type(uint256).max, "n", by);
    }

    function refusedPay(uint256 key, uint256 value) private {
        bytes memory by = signature(key, shop, value);
        refuses(IUsdc.InvalidSignature.selector);
        usdc.transferWithAuthorization(address(purse), shop, value, 0, type(uint256).max, "n", by);
    }

    // ------------------------------------------------------------------ who signs

    function test_the_operator_pays_from_the_purse(uint256 value) public {
        value = bound(value, 1, 2e6);
        pay(NODE_KEY, value);
        eq(usdc.balanceOf(shop), value, "paid");
        eq(usdc.balanceOf(address(purse)), 2e6 - value, "from the purse");
    }

    function test_nobody_else_does(uint256 key) public {
        key = bound(key, 1, type(uint128).max);
        vm.assume(key != NODE_KEY);
        refusedPay(key, 1);
    }

    function test_not_while_paused_nor_after_a_stop(bool stop) public {
        if (stop) treasury.stop(approve("stop", 0));
        else treasury.pause(approve("pause", 0));
        usdc.mint(address(purse), 1e6); // even if something were in it
        refusedPay(NODE_KEY, 1);
        if (stop) return;
        treasury.resume(approve("resume", 0));
        pay(NODE_KEY, 1);
    }

    function test_a_purse_is_of_one_treasury_one_token_and_one_cap() public view {
        eq(purse.treasury(), address(treasury), "treasury");
        eq(purse.token(), address(usdc), "token");
        eq(purse.cap(), 3e6, "cap");
    }

    function test_the_treasury_says_whose_signature_counts() public {
        eq(treasury.purseSigner(), vm.addr(NODE_KEY), "the operator's");
        treasury.pause(approve("pause", 0));
        eq(treasury.purseSigner(), address(0), "nobody's in a pause");
        treasury.resume(approve("resume", 0));
        eq(treasury.purseSigner(), vm.addr(NODE_KEY), "the operator's again");
        vm.prank(operator());
        treasury.rent(offerB, TERM, 1e5);
        readyWith(2, NEXT_KEY);
        challengeUnanswered();
        vm.prank(vm.addr(NEXT_KEY));
        treasury.takeover();
        eq(treasury.purseSigner(), address(0), "nobody's while restoring");
        commitNext("restored");
        eq(treasury.purseSigner(), vm.addr(NEXT_KEY), "the successor's");
        treasury.stop(approve("stop", 0));
        eq(treasury.purseSigner(), address(0), "nobody's after a stop");
    }

    function test_nothing_signed_in_an_old_epoch_counts(bool planned) public {
        vm.prank(operator());
        treasury.rent(offerB, TERM, 1e5);
        readyWith(2, NEXT_KEY);
        if (planned) {
            handTo(2);
        } else {
            challengeUnanswered();
            vm.prank(vm.addr(NEXT_KEY));
            treasury.takeover();
        }
        eq(usdc.balanceOf(address(purse)), 0, "swept");
        usdc.mint(address(purse), 1e6);
        refusedPay(NODE_KEY, 1);
        if (planned) {
            pay(NEXT_KEY, 1);
        } else {
            refusedPay(NEXT_KEY, 1); // it has to restore first
            commitNext("restored");
            pay(NEXT_KEY, 1);
        }
    }

    function test_it_signs_within_its_cap_only(uint256 gift) public {
        gift = bound(gift, 0, 3e6);
        usdc.mint(address(purse), gift);
        if (2e6 + gift <= 3e6) {
            pay(NODE_KEY, 1);
            return;
        }
        refusedPay(NODE_KEY, 1);
        uint256 before = treasury.state().balance;
        vm.prank(stranger);
        purse.trim();
        eq(usdc.balanceOf(address(purse)), 3e6, "trimmed");
        eq(treasury.state().balance, before + gift - 1e6, "back home");
        pay(NODE_KEY, 1);
    }

    // ------------------------------------------------------------------ what is signed

    function test_it_signs_only_what_is_spelled_out(uint256 value, address to) public {
        value = bound(value, 1, 2e6);
        bytes memory by = signature(NODE_KEY, shop, value);
        vm.assume(to != shop && to != address(0));
        refuses(IUsdc.InvalidSignature.selector);
        usdc.transferWithAuthorization(address(purse), to, value, 0, type(uint256).max, "n", by);
        refuses(IUsdc.InvalidSignature.selector);
        usdc.transferWithAuthorization(address(purse), shop, value - 1, 0, type(uint256).max, "n", by);
    }

    function test_no_receive_no_cancel_no_bare_signature() public {
        bytes32 hash = structHash("ReceiveWithAuthorization", address(purse), shop, 1);
        bytes memory by = signed(NODE_KEY, usdc.DOMAIN_SEPARATOR(), hash);
        bytes memory wrapped = abi.encode(shop, uint256(1), uint256(0), type(uint256).max, bytes32("n"), by);
        refuses(IUsdc.InvalidSignature.selector);
        vm.prank(shop);
        usdc.receiveWithAuthorization(address(purse), shop, 1, 0, type(uint256).max, "n", wrapped);
        bytes32 cancel = keccak256(
            abi.encode(keccak256("CancelAuthorization(address authorizer,bytes32 nonce)"), address(purse), bytes32("n"))
        );
        by = signed(NODE_KEY, usdc.DOMAIN_SEPARATOR(), cancel);
        refuses(IUsdc.InvalidSignature.selector);
        usdc.cancelAuthorization(address(purse), "n", by);
        by = signed(
            NODE_KEY, usdc.DOMAIN_SEPARATOR(), structHash("TransferWithAuthorization", address(purse), shop, 1)
        );
        refuses(IUsdc.InvalidSignature.selector);
        usdc.transferWithAuthorization(address(purse), shop, 1, 0, type(uint256).max, "n", by);
    }

    function test_garbage_is_no_signature(bytes32 hash, bytes memory garbage) public view {
        (bool done, bytes memory said) =
            address(purse).staticcall(abi.encodeCall(IPurse.isValidSignature, (hash, garbage)));
        no(done && abi.decode(said, (bytes4)) == bytes4(0x1626ba7e), "not valid");
    }

    // ------------------------------------------------------------------ sweeping

    function test_only_the_treasury_sweeps(address who) public {
        vm.assume(who != address(treasury));
        refuses(IPurse.NotTreasury.selector);
        vm.prank(who);
        purse.sweep();
    }

    function test_every_change_of_hands_sweeps(uint256 how) public {
        how = how % 6;
        uint256 before = treasury.state().balance;
        vm.prank(operator());
        treasury.rent(offerB, TERM, 0);
        readyWith(2, NEXT_KEY);
        if (how == 0) treasury.evict(1, approve("evict", 1));
        if (how == 1) treasury.revokeCode(approve("revokeCode", uint256(CODE)));
        if (how == 2) treasury.stop(approve("stop", 0));
        if (how == 3) treasury.pause(approve("pause", 0));
        if (how == 4) {
            vm.prank(operator());
            treasury.hibernate(uint64(block.timestamp + 1 days));
        }
        if (how == 5) {
            windingDown();
            usdc.mint(address(purse), 5);
            skip(3 days);
            treasury.close();
            usdc.mint(address(purse), 7);
            treasury.sweep();
        }
        eq(usdc.balanceOf(address(purse)), 0, "empty");
        yes(treasury.state().balance >= before + 2e6, "all back");
    }

    function test_a_frozen_purse_stops_nothing() public {
        usdc.setFrozen(address(purse), true);
        treasury.pause(approve("pause", 0));
        treasury.evict(1, approve("evict", 1));
        eq(usdc.balanceOf(address(purse)), 2e6, "still there");
        usdc.setFrozen(address(purse), false);
        windingDown();
        eq(usdc.balanceOf(address(purse)), 0, "fetched later");
    }

    // ------------------------------------------------------------------ the treasury signs nothing

    function test_eip3009_permit2_and_deposits_in_the_treasurys_name_are_refused(uint256 key, uint256 value) public {
        key = key % 2 == 0 ? NODE_KEY : bound(key, 1, type(uint128).max);
        value = bound(value, 1, 5e6);
        bytes32 hash = structHash("TransferWithAuthorization", address(treasury), shop, value);
        bytes memory by = signed(key, usdc.DOMAIN_SEPARATOR(), hash);
        refuses(IUsdc.InvalidSignature.selector);
        usdc.transferWithAuthorization(address(treasury), shop, value, 0, type(uint256).max, "n", by);
        // In the purse's own format too.
        by = abi.encode(shop, value, uint256(0), type(uint256).max, bytes32("n"), by);
        refuses(IUsdc.InvalidSignature.selector);
        usdc.transferWithAuthorization(address(treasury), shop, value, 0, type(uint256).max, "n", by);

        Permit2Double permit2 = new Permit2Double();
        Permit2Double.Permit memory p = Permit2Double.Permit(address(usdc), value, 0, type(uint256).max);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, permit2.digest(p, address(this)));
        by = abi.encodePacked(r, s, v);
        refuses(Permit2Double.InvalidSigner.selector);
        permit2.permitTransferFrom(p, shop, address(treasury), by);
        refuses(Permit2Double.InvalidSigner.selector);
        permit2.permitTransferFrom(p, shop, address(purse), by);

        ChannelDouble channels = new ChannelDouble();
        address[2] memory payers = [address(treasury), address(purse)];
        for (uint256 i = 0; i < 2; ++i) {
            ITreasury.ChannelConfig memory c =
                ITreasury.ChannelConfig(payers[i], address(0), shop, shop, address(usdc), 1 days, 0);
            hash = keccak256(
                abi.encode(
                    keccak256(
                        "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
                    ),
                    payers[i], address(channels), value, 0, type(uint256).max, channels.getChannelId(c)
                )
            );
            by = signed(key, usdc.DOMAIN_SEPARATOR(), hash);
            refuses(IUsdc.InvalidSignature.selector);
            channels.deposit(c, uint128(value), address(0), by);
        }
    }

    /// ERC-4337, ERC-1271, ERC-7579 and module entries by name, and any other by chance: none of them is there, in
    /// neither half, whoever calls.
    function test_no_entry_lets_anybody_call_out_of_the_treasury(bytes4 selector, bytes memory rest, address who) public {
        string[6] memory names = [
            "validateUserOp((address,uint256,bytes,bytes,bytes32,bytes32,bytes32,bytes),bytes32,uint256)",
            "isValidSignature(bytes32,bytes)", "execute(address,uint256,bytes)", "execute(bytes32,bytes)",
            "execTransactionFromModule(address,uint256,bytes,uint8)", "approve(address,uint256)"
        ];
        for (uint256 i = 0; i <= names.length; ++i) {
            bytes4 called = i < names.length ? bytes4(keccak256(bytes(names[i]))) : selector;
            vm.prank(i % 2 == 0 ? operator() : who);
            (bool done, bytes memory said) = address(treasury).call(abi.encodePacked(called, rest));
            // What forge draws may be an entry by chance; then it answers for itself in its own tests.
            if (i < names.length) no(done || said.length != 0, names[i]);
        }
    }

    /// An entry point of ERC-4337 that anybody may feed: it pays nothing out of an account that validates nothing.
    function test_a_user_operation_for_treasury_or_purse_is_refused(uint256 key, uint256 value) public {
        key = key % 2 == 0 ? NODE_KEY : bound(key, 1, type(uint128).max);
        EntryPointDouble entry = new EntryPointDouble();
        bytes memory take = abi.encodeCall(IUsdc.transfer, (shop, bound(value, 1, 2e6)));
        address[2] memory senders = [address(treasury), address(purse)];
        for (uint256 i = 0; i < 2; ++i) {
            bytes memory by = plain(key, entry.hashOf(senders[i], address(usdc), take));
            vm.expectRevert();
            entry.handle(senders[i], address(usdc), take, by);
        }
        eq(usdc.balanceOf(shop), 0, "nothing moved");
    }

    /// ERC-6492: whatever is called "to prepare" it, treasury and purse sign no more than they did before; and in the
    /// bytes that a payer gives `settleExact`, nothing is called at all.
    function test_an_erc6492_wrapper_neither_signs_nor_calls(bytes32 hash, uint256 key) public {
        key = bound(key, 1, type(uint128).max);
        UniversalDouble universal = new UniversalDouble();
        bytes memory inner = plain(key % 2 == 0 ? NODE_KEY : key, hash);
        bytes[2] memory prepare = [abi.encodeCall(ITreasury.refuel, ()), abi.encodeWithSignature("upgradeTo(address)", shop)];
        for (uint256 i = 0; i < 2; ++i) {
            bytes memory wrapped = universal.wrap(address(treasury), prepare[i], inner);
            no(universal.isValid(address(treasury), hash, wrapped), "the treasury signs nothing");
            no(universal.isValid(address(purse), hash, wrapped), "nor does the purse, so");
        }
        address payer = address(0xFACADE); // not deployed yet: its factory is in the signature
        bytes memory paid = universal.wrap(address(universal), abi.encodeCall(UniversalDouble.touch, ()), inner);
        usdc.mint(payer, 10);
        vm.prank(vm.addr(NODE_KEY));
        refuses(IUsdc.InvalidSignature.selector);
        treasury.settleExact(payer, 10, 0, type(uint256).max, "n", paid);
        no(universal.touched(), "no factory of a payer's choosing was called");
    }

    function test_the_account_doubles_do_take_good_signatures() public {
        // Or the tests above could not fail.
        UniversalDouble universal = new UniversalDouble();
        EntryPointDouble entry = new EntryPointDouble();
        address account = address(new SignerDouble(customer));
        usdc.mint(account, 10);
        bytes memory take = abi.encodeCall(IUsdc.transfer, (shop, 7));
        bytes32 op = entry.hashOf(account, address(usdc), take);
        entry.handle(account, address(usdc), take, plain(CUSTOMER_KEY, op));
        eq(usdc.balanceOf(shop), 7, "a user operation");
        vm.prank(shop);
        usdc.transfer(account, 7);
        bytes memory prepare = abi.encodeCall(UniversalDouble.touch, ());
        yes(universal.isValid(account, op, universal.wrap(address(universal), prepare, plain(CUSTOMER_KEY, op))), "6492");
        yes(universal.touched(), "prepared");
    }

    function test_the_doubles_do_take_good_signatures() public {
        address payer = address(new SignerDouble(customer));
        usdc.mint(payer, 10);
        ChannelDouble channels = new ChannelDouble();
        ITreasury.ChannelConfig memory c =
            ITreasury.ChannelConfig(payer, address(0), shop, shop, address(usdc), 1 days, 0);
        bytes32 hash = keccak256(
            abi.encode(
                keccak256(
                    "ReceiveWithAuthorization(address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce)"
                ),
                payer, address(channels), 10, 0, type(uint256).max, channels.getChannelId(c)
            )
        );
        channels.deposit(c, 10, address(0), signed(CUSTOMER_KEY, usdc.DOMAIN_SEPARATOR(), hash));
        eq(usdc.balanceOf(address(channels)), 10, "deposited");

        Permit2Double permit2 = new Permit2Double();
        vm.prank(customer);
        usdc.approve(address(permit2), 10);
        Permit2Double.Permit memory p = Permit2Double.Permit(address(usdc), 10, 0, type(uint256).max);
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(CUSTOMER_KEY, permit2.digest(p, address(this)));
        permit2.permitTransferFrom(p, shop, customer, abi.encodePacked(r, s, v));
        eq(usdc.balanceOf(shop), 10, "permitted");
    }

    function plain(uint256 key, bytes32 hash) private pure returns (bytes memory) {
        (uint8 v, bytes32 r, bytes32 s) = vm.sign(key, hash);
        return abi.encodePacked(r, s, v);
    }

    function test_there_is_no_purse_where_birth_has_none() public {
        ITreasury.Birth memory b = birth();
        b.options.purseMax = 0;
        eq(create(b).standing().purse, address(0), "none");
    }
}
