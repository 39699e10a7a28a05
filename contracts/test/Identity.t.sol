// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {World} from "./World.sol";

interface IRegistry {
    event URIUpdated(uint256 indexed agentId, string newURI, address indexed updatedBy);

    function register() external returns (uint256);
    function register(string calldata uri) external returns (uint256);
    function setAgentURI(uint256 agentId, string calldata uri) external;
    function ownerOf(uint256 agentId) external view returns (address);
    function balanceOf(address who) external view returns (uint256);
    function tokenURI(uint256 agentId) external view returns (string memory);
    function getAgentWallet(uint256 agentId) external view returns (address);
    function transferFrom(address from, address to, uint256 agentId) external;
    function safeTransferFrom(address from, address to, uint256 agentId) external;
}

/// A registry that turned against its agents, in one way at a time.
contract HostileRegistry {
    enum Way { Reverts, BurnsAllGas, ReturnsABomb, ReturnsNothing, ReturnsTheLargest, Reenters, Stops }

    Way public way;
    uint256 public calls;
    bytes public inside; // what it calls back with

    function turn(Way way_, bytes calldata inside_) external {
        (way, inside) = (way_, inside_);
    }

    function register(string calldata) external returns (uint256) {
        return act();
    }

    function setAgentURI(uint256, string calldata) external {
        act();
    }

    function act() private returns (uint256) {
        Way w = way;
        if (w == Way.Reverts) revert("no agents here");
        if (w == Way.BurnsAllGas) while (true) {}
        if (w == Way.ReturnsABomb) assembly { revert(0, 400000) }
        if (w == Way.ReturnsNothing) assembly { return(0, 0) }
        if (w == Way.ReturnsTheLargest) return type(uint256).max;
        if (w == Way.Stops) assembly { invalid() }
        ++calls;
        (bool done,) = msg.sender.call(inside);
        require(done, "refused");
        return 7;
    }
}

/// Who the agent is in a public registry: its treasury, and the treasury alone.
contract IdentityTest is World {
    string private constant FILE = "/.well-known/agent-registration.json";
    IRegistry private registry;
    address private where; // the registry of the next birth
    uint256 private constant NODE_KEY = 0x40DE;

    function setUp() public override {
        super.setUp();
        registry = IRegistry(deploy("IdentityRegistry", ""));
        where = address(registry);
    }

    function options() internal view override returns (ITreasury.Options memory o) {
        (o.identity, o.relayMax) = (where, 0.001 ether);
    }

    function says(string memory endpoint) private view {
        ITreasury.Standing memory s = treasury.standing();
        yes(s.isRegistered, "registered");
        eq(registry.ownerOf(s.agentId), address(treasury), "the treasury is the agent");
        eq(keccak256(bytes(registry.tokenURI(s.agentId))), keccak256(abi.encodePacked(endpoint, FILE)), endpoint);
    }

    function readyAt(uint256 lease, string memory endpoint) private {
        vm.prank(market.leaseOf(lease).provider);
        market.ready(lease, nodeKey(lease), endpoint, 0);
    }

    /// Alive at http://one, standby ready at http://two.
    function lived() private {
        born();
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        readyAt(lease, "http://one");
        vm.prank(creator);
        treasury.activate(lease);
        vm.prank(operator());
        lease = treasury.rent(offerB, TERM, PREPAY_MAX / 2);
        readyAt(lease, "http://two");
    }

    // ------------------------------------------------------------------ registered, and found

    function test_it_is_registered_at_birth() public {
        // Others came first, so numbers are no proof of anything.
        vm.prank(stranger);
        registry.register();
        lived();
        says("http://one");
        eq(treasury.standing().agentId, 1, "the next number");
        eq(registry.getAgentWallet(1), address(treasury), "its wallet");
        eq(registry.balanceOf(address(treasury)), 1, "once");
    }

    function test_even_number_zero_is_an_identity() public {
        lived();
        eq(treasury.standing().agentId, 0, "the first number of the published contract");
        handTo(2);
        eq(registry.balanceOf(address(treasury)), 1, "not registered twice");
        says("http://two");
    }

    function test_each_succession_says_where_the_agent_lives(uint256 how) public {
        lived();
        how = bound(how, 0, 3);
        if (how == 0) handTo(2);
        if (how == 1) {
            challengeUnanswered();
            vm.prank(nodeKey(2));
            treasury.takeover();
        }
        if (how == 2) treasury.evict(2, approve("evict", 2));
        if (how == 3) treasury.evict(1, approve("evict", 1));
        says(how == 3 ? "http://one" : "http://two");
        eq(registry.balanceOf(address(treasury)), 1, "the same identity");
    }

    function test_a_relayed_takeover_says_so_too() public {
        born();
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        readyAt(lease, "http://one");
        vm.prank(creator);
        treasury.activate(lease);
        vm.prank(operator());
        lease = treasury.rent(offerB, TERM, PREPAY_MAX / 2);
        vm.prank(providerB);
        market.ready(lease, vm.addr(NODE_KEY), "http://two", 0);
        challengeUnanswered();
        ITreasury.State memory s = treasury.state();
        bytes32 kind = keccak256("Act(string action,uint256 lease,uint64 epoch,uint64 nonce,uint64 deadline)");
        bytes32 hash = keccak256(
            abi.encode(kind, keccak256("takeover"), 2, s.epoch, treasury.lastChallengeAt(), type(uint64).max)
        );
        vm.prank(relay);
        treasury.takeoverFor(type(uint64).max, signed(NODE_KEY, domain(), hash));
        says("http://two");
    }

    function test_nobody_at_home_changes_nothing() public {
        lived();
        treasury.evict(0, approve("evict", 0));
        says("http://one");
        refuses(ITreasury.Off.selector);
        treasury.identify();
    }

    function test_without_a_registry_there_is_no_identity() public {
        where = address(0);
        lived();
        handTo(2);
        no(treasury.standing().isRegistered, "off");
        refuses(ITreasury.Off.selector);
        treasury.identify();
    }

    // ------------------------------------------------------------------ who decides what it says

    function test_anyone_may_repeat_the_record_and_nothing_else(address who) public {
        lived();
        vm.prank(who);
        treasury.identify();
        says("http://one");
        vm.assume(who != address(treasury));
        // The published ABI says who may write: the holder of the token, and that is the treasury.
        vm.prank(who);
        (bool done,) = address(registry).call(abi.encodeCall(IRegistry.setAgentURI, (0, "http://elsewhere")));
        no(done, "not even the operator writes there");
        vm.prank(who);
        (done,) = address(registry).call(abi.encodeCall(IRegistry.transferFrom, (address(treasury), who, 0)));
        no(done, "nor takes it away");
    }

    function test_a_token_that_was_sent_here_is_not_the_agents_identity() public {
        lived();
        vm.prank(stranger);
        uint256 other = registry.register("http://thief");
        vm.prank(stranger);
        registry.safeTransferFrom(stranger, address(treasury), other);
        eq(registry.ownerOf(other), address(treasury), "it lies here");
        eq(treasury.standing().agentId, 0, "but the treasury names another");
        handTo(2);
        says("http://two");
    }

    function test_identify_ends_with_the_life() public {
        ITreasury implementation = ITreasury(payable(factory.implementation()));
        refuses(ITreasury.WrongStage.selector);
        implementation.identify();
        born();
        refuses(ITreasury.WrongStage.selector);
        treasury.identify();
    }

    // ------------------------------------------------------------------ a registry that turned

    function hostile(uint256 way, bytes memory inside) private returns (HostileRegistry made) {
        made = new HostileRegistry();
        made.turn(HostileRegistry.Way(bound(way, 0, 6)), inside);
        where = address(made);
    }

    function moves(uint256 how) private {
        how = bound(how, 0, 2);
        // As much gas as such a transaction takes, and the registry's bounded share.
        if (how == 0) {
            announceAndWait(2);
            vm.prank(operator());
            treasury.handover{gas: 1_200_000}(2, 0, 0, uint64(block.timestamp));
        }
        if (how == 1) {
            challengeUnanswered();
            vm.prank(nodeKey(2));
            treasury.takeover{gas: 1_200_000}();
        }
        if (how == 2) treasury.evict{gas: 1_200_000}(2, approve("evict", 2));
        eq(operator(), nodeKey(2), "it moved");
        eq(treasury.state().epoch, 2, "a new epoch");
    }

    function test_no_registry_stops_a_life(uint256 way, uint256 how) public {
        hostile(way, abi.encodeCall(ITreasury.identify, ()));
        lived();
        moves(how);
        beat();
    }

    function test_a_registry_that_turns_later_stops_nothing(uint256 way, uint256 how) public {
        HostileRegistry made = hostile(4, "");
        lived();
        eq(treasury.standing().agentId, type(uint256).max, "whatever it said");
        made.turn(HostileRegistry.Way(bound(way, 0, 6)), abi.encodeCall(ITreasury.identify, ()));
        moves(how);
    }

    function test_an_absent_registry_stops_nothing(uint256 how) public {
        where = address(0xDEAD);
        lived();
        moves(how);
        no(treasury.standing().isRegistered, "nobody wrote it down");
    }

    /// From within, it finds every entry that counts closed, by the guard or because it isn't the caller meant.
    function test_reentry_opens_nothing(uint256 which) public {
        ITreasury.Approval memory none;
        bytes[6] memory inside = [
            abi.encodeCall(ITreasury.refuel, ()), abi.encodeCall(ITreasury.windDown, ()),
            abi.encodeCall(ITreasury.takeover, ()), abi.encodeCall(ITreasury.pause, (none)),
            abi.encodeCall(ITreasury.challenge, ()), abi.encodeCall(ITreasury.release, (1))
        ];
        HostileRegistry made = hostile(5, inside[bound(which, 0, 5)]);
        lived();
        eq(made.calls(), 0, "what it did came to nothing");
        no(treasury.standing().isRegistered, "and was undone");
        moves(which);
    }

    /// Whoever relays an order can't choose a gas limit at which it is obeyed and the registry is left out.
    function test_no_gas_limit_leaves_the_registry_out() public {
        lived();
        bytes memory call_ = abi.encodeCall(ITreasury.evict, (2, approve("evict", 2)));
        bool moved;
        for (uint256 gas = 150_000; gas < 900_000 && !moved; gas += 2_000) {
            (moved,) = address(treasury).call{gas: gas}(call_);
        }
        yes(moved, "enough at last");
        says("http://two");
    }

    /// Nothing expensive follows the registry there, so only the rule about gas holds it.
    function test_no_gas_limit_leaves_the_registry_out_of_a_birth() public {
        born();
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        readyAt(lease, "http://one");
        bytes memory call_ = abi.encodeCall(ITreasury.activate, (lease));
        bool alive;
        for (uint256 gas = 100_000; gas < 900_000 && !alive; gas += 1_000) {
            vm.prank(creator);
            (alive,) = address(treasury).call{gas: gas}(call_);
        }
        yes(alive, "enough at last");
        says("http://one");
    }

    /// Whoever sent it too little learns it by name: the last limit before enough.
    function test_too_little_gas_for_the_registry_is_named() public {
        born();
        vm.prank(creator);
        uint256 lease = treasury.birthRent(offerA, TERM, PREPAY_MAX / 2);
        readyAt(lease, "http://one");
        bytes memory call_ = abi.encodeCall(ITreasury.activate, (lease));
        bytes memory why;
        bool alive;
        for (uint256 gas = 400_000; gas < 900_000 && !alive; gas += 1_000) {
            vm.prank(creator);
            bytes memory said;
            (alive, said) = address(treasury).call{gas: gas}(call_);
            if (!alive) why = said;
        }
        yes(alive, "enough at last");
        eq(keccak256(why), keccak256(abi.encodePacked(ITreasury.LowGas.selector)), "too little gas");
        yes(treasury.standing().isRegistered, "nothing was left out");
    }

    /// The registry asks; so does anybody who sends an identity of another's.
    function test_a_treasury_takes_whatever_identity_it_is_given(address by, address from, uint256 id, bytes memory data)
        public
    {
        lived();
        vm.prank(by);
        bytes4 taken = treasury.onERC721Received(by, from, id, data);
        eq(bytes32(taken), bytes32(bytes4(keccak256("onERC721Received(address,address,uint256,bytes)"))), "ERC-721's word");
    }

    function test_what_failed_is_mended_by_anyone() public {
        HostileRegistry made = hostile(0, "");
        lived();
        no(treasury.standing().isRegistered, "it was away");
        made.turn(HostileRegistry.Way.ReturnsTheLargest, "");
        vm.prank(stranger);
        treasury.identify();
        yes(treasury.standing().isRegistered, "and came back");
    }
}
