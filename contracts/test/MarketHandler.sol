// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.24;

import {ILeaseMarket} from "../src/interfaces/ILeaseMarket.sol";
import {World} from "./World.sol";

/// @title Providers and tenants of the market, doing anything in any order.
contract MarketHandler is World {
    address[3] private tenants = [address(0x7E01), address(0x7E02), address(0x7E03)];
    address[3] private providers;
    mapping(uint256 lease => uint256) private accruedBefore;

    constructor() {
        World.setUp();
        providers = [providerA, providerB, providerC];
        for (uint256 i = 0; i < 3; ++i) {
            usdc.mint(tenants[i], 1_000_000e6);
            vm.prank(tenants[i]);
            usdc.approve(address(market), type(uint256).max);
            usdc.mint(providers[i], 1000e6);
        }
    }

    function selectors() external pure returns (bytes4[] memory all) {
        all = new bytes4[](12);
        all[0] = this.wait.selector;
        all[1] = this.rent.selector;
        all[2] = this.rent.selector;
        all[3] = this.ready.selector;
        all[4] = this.ready.selector;
        all[5] = this.vouch.selector;
        all[6] = this.topUp.selector;
        all[7] = this.withdraw.selector;
        all[8] = this.close.selector;
        all[9] = this.endByAnyone.selector;
        all[10] = this.stake.selector;
        all[11] = this.freezeOrCollect.selector;
    }

    function wait(uint256 time) external {
        skip(bound(time, 1, 1 days));
        for (uint256 id = 1; id <= market.leaseCount(); ++id) {
            uint256 now_ = market.accrued(id);
            yes(now_ >= accruedBefore[id], "rent never shrinks");
            accruedBefore[id] = now_;
        }
    }

    function rent(uint256 who, uint256 which, uint32 term, uint128 prepay, uint64 priceE6) external {
        uint256 offer = 1 + which % 3;
        sendAs(providers[which % 3], abi.encodeCall(ILeaseMarket.reprice, (offer, uint64(bound(priceE6, 0, 20e6)))));
        term = uint32(bound(term, 1 days, 5 days));
        prepay = uint128(bound(prepay, 0, 5e6));
        sendAs(tenants[who % 3], abi.encodeCall(ILeaseMarket.rent, (offer, term, CODE, prepay)));
    }

    function ready(uint256 which) external {
        uint256 id = lease(which);
        sendAs(market.leaseOf(id).provider, abi.encodeCall(ILeaseMarket.ready, (id, nodeKey(id), "", 0)));
    }

    function vouch(uint256 which) external {
        uint256 id = lease(which);
        sendAs(market.leaseOf(id).tenant, abi.encodeCall(ILeaseMarket.vouch, (id)));
    }

    function topUp(uint256 who, uint256 which, uint128 amount) external {
        sendAs(tenants[who % 3], abi.encodeCall(ILeaseMarket.topUp, (lease(which), uint128(bound(amount, 0, 5e6)))));
    }

    function withdraw(uint256 which) external {
        uint256 id = lease(which);
        sendAs(market.leaseOf(id).provider, abi.encodeCall(ILeaseMarket.withdraw, (id)));
    }

    function close(uint256 which) external {
        uint256 id = lease(which);
        sendAs(market.leaseOf(id).tenant, abi.encodeCall(ILeaseMarket.close, (id)));
    }

    function endByAnyone(uint256 which, bool reclaims) external {
        uint256 id = lease(which);
        if (reclaims) sendAs(stranger, abi.encodeCall(ILeaseMarket.reclaim, (id)));
        else sendAs(stranger, abi.encodeCall(ILeaseMarket.expire, (id)));
    }

    function stake(uint256 who, uint256 amount, bool leaves) external {
        if (leaves) sendAs(providers[who % 3], abi.encodeCall(ILeaseMarket.unregister, ()));
        else sendAs(providers[who % 3], abi.encodeCall(ILeaseMarket.register, (bound(amount, 0, 100e6))));
    }

    function freezeOrCollect(uint256 who, bool freeze) external {
        address one = who % 2 == 0 ? tenants[who % 3] : providers[who % 3];
        if (freeze) usdc.setFrozen(one, who % 5 == 0);
        else sendAs(stranger, abi.encodeCall(ILeaseMarket.collect, (one)));
    }

    // ------------------------------------------------------------------ books

    function check() external view {
        uint256 held = 0;
        uint256[3] memory open;
        for (uint256 id = 1; id <= market.leaseCount(); ++id) {
            ILeaseMarket.Lease memory l = market.leaseOf(id);
            uint256 earned = market.accrued(id);
            yes(l.withdrawn <= earned && earned <= l.escrow, "escrow is not overdrawn");
            uint256 time = l.start == 0 ? 0 : min(l.end, l.vouchedAt + GRACE) - l.start;
            yes(earned * 1e6 < uint256(l.priceE6) * time + 1e6, "no more than the time, rounded up once");
            if (l.state == ILeaseMarket.LeaseState.Closed) {
                eq(l.escrow, l.withdrawn, "closed means settled");
                continue;
            }
            held += l.escrow - l.withdrawn;
            ++open[l.offer - 1];
        }
        for (uint256 i = 0; i < 3; ++i) {
            eq(market.offerOf(i + 1).used, open[i], "capacity in use");
            eq(market.openLeasesOf(providers[i]), open[i], "open leases of a provider");
            yes(open[i] == 0 || market.stakeOf(providers[i]) >= STAKE, "an open lease has a stake behind it");
            held += market.stakeOf(providers[i]) + market.owedTo(providers[i]) + market.owedTo(tenants[i]);
        }
        eq(usdc.balanceOf(address(market)), held, "the market holds what it should");
    }

    function lease(uint256 which) private view returns (uint256) {
        uint256 count = market.leaseCount();
        // Mostly the newest: old ones are closed.
        return count == 0 ? 0 : count - which % min(count, 6);
    }

    function sendAs(address from, bytes memory call_) private returns (bool done) {
        vm.prank(from);
        (done,) = address(market).call(call_);
    }
}
