// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {ITreasury} from "../src/interfaces/ITreasury.sol";
import {Cheats} from "./Cheats.sol";
import {LifeHandler} from "./LifeHandler.sol";
import {MarketHandler} from "./MarketHandler.sol";
import {IUsdc} from "./World.sol";

/// What holds after any sequence of anything: for one agent's whole life.
contract LifeInvariants is Cheats {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    event Reached(string what, uint256 times);

    LifeHandler private life;
    mapping(string what => uint256) private reached;

    function goals() private pure returns (string[38] memory) {
        return [
            "pay", "rent", "topUp", "release", "heartbeat", "commit", "commitEarly", "restored", "handover", "refund",
            "takeover", "takeover of the rescued", "pause", "rescue", "evict all", "keep active", "keep standby", "close", "spend",
            "purse", "buyGas", "claim", "refundChannel", "duty", "hibernate", "revokeCode", "tighten", "loosen", "setCode",
            "openRefunds", "sign", "sign of old", "sign in vain", "sign over cap", "rekey", "rekey active",
            "keep another key", "keep a used key, in vain"
        ];
    }

    function setUp() public {
        life = new LifeHandler();
    }

    function targetContracts() external view returns (address[] memory all) {
        all = new address[](1);
        all[0] = address(life);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory all) {
        all = new FuzzSelector[](1);
        all[0] = FuzzSelector(address(life), life.selectors());
    }

    /// One long random walk, to see that the handler gets everywhere: what it never does, the invariants never meet.
    function test_everything_happens() public {
        bytes4[] memory all = life.selectors();
        uint256 random = 7;
        for (uint256 i = 0; i < 12000; ++i) {
            if (i % 500 == 499) life = new LifeHandler();
            random = uint256(keccak256(abi.encode(random)));
            (uint256 a, uint256 b, uint256 c) = (random >> 8, random >> 40, random >> 72);
            (bool done,) = address(life).call(abi.encodePacked(all[random % all.length], a, b, c));
            yes(done, "the handler itself never fails");
            for (uint256 j = 0; i % 500 == 498 && j < goals().length; ++j) {
                reached[goals()[j]] += life.happened(goals()[j]);
            }
        }
        for (uint256 j = 0; j < goals().length; ++j) {
            emit Reached(goals()[j], reached[goals()[j]]);
        }
        for (uint256 j = 0; j < goals().length; ++j) {
            yes(reached[goals()[j]] > 0, goals()[j]);
        }
    }

    /// Solvency, authority, epochs, checkpoints and the day limit. One function, or each would cost its own sequences.
    function invariant_whatever_happens() external view {
        eq(keccak256(bytes(life.violation())), keccak256(""), life.violation());
        (ITreasury treasury, ILeaseMarket market) = life.world();
        ITreasury.State memory s = treasury.state();
        solvent(s, treasury, market);
        eq(s.operator, life.operatorDue(), "the operator is who should be");
        eq(s.epoch, life.epochDue(), "the epoch counts successions");
        eq(s.checkpointSeq, life.seqDue(), "checkpoints never go back");
        eq(s.checkpointDigest, life.digestDue(), "the last acknowledged checkpoint");
        eq(treasury.birthOf().creator, address(0), "the creator stays forgotten");
        eq(
            address(treasury).balance + treasury.birthOf().policy.gasTarget <= 1 ether ? 1 : 0, 1,
            "gas only ever leaves"
        );
    }

    function solvent(ITreasury.State memory s, ITreasury treasury, ILeaseMarket market) private view {
        uint256 inLeases = 0;
        uint256 left = 0;
        uint256 held = 0;
        for (uint256 id = 1; id <= market.leaseCount(); ++id) {
            ILeaseMarket.Lease memory l = market.leaseOf(id);
            uint256 earned = market.accrued(id);
            inLeases += l.escrow;
            yes(l.withdrawn <= earned && earned <= l.escrow, "escrow is not overdrawn");
            if (l.state == ILeaseMarket.LeaseState.Closed) continue;
            yes(id == s.activeLease || id == s.standbyLease || id == s.drainingLease, "no open lease is forgotten");
            left += l.escrow - earned;
            held += l.escrow - l.withdrawn;
        }
        eq(s.escrow, left, "escrow as the treasury states it");
        uint256 here = s.balance + inLeases + market.owedTo(address(treasury));
        here += IUsdc(life.token()).balanceOf(treasury.standing().purse);
        eq(
            here + life.refunded() + life.withdrawn() + life.bought(), life.paidIn() + life.channelIncome(),
            "what came in is here, in leases, with customers, sellers, stewards or the beneficiary"
        );
        address[3] memory hosts = life.hosts();
        for (uint256 i = 0; i < 3; ++i) {
            held += market.stakeOf(hosts[i]) + market.owedTo(hosts[i]);
        }
        held += market.owedTo(address(treasury));
        eq(IUsdc(life.token()).balanceOf(address(market)), held, "the market holds what it should");
    }
}

/// The same for the market alone, with many tenants.
contract MarketInvariants is Cheats {
    struct FuzzSelector {
        address addr;
        bytes4[] selectors;
    }

    MarketHandler private handler;

    function setUp() public {
        handler = new MarketHandler();
    }

    function targetContracts() external view returns (address[] memory all) {
        all = new address[](1);
        all[0] = address(handler);
    }

    function targetSelectors() external view returns (FuzzSelector[] memory all) {
        all = new FuzzSelector[](1);
        all[0] = FuzzSelector(address(handler), handler.selectors());
    }

    function invariant_the_market_holds_what_it_should() external view {
        handler.check();
    }
}
