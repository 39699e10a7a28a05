//! Rust types of the contracts that only a simulated world calls by itself: the rest of the project meets them through
//! a client's signature or through the treasury. The others are in `chain::bindings`.

mod purse {
    alloy::sol!(
        #![sol(all_derives)]
        Purse,
        "../../contracts/abi/Purse.json"
    );
}

mod permit2 {
    alloy::sol!(
        #![sol(all_derives)]
        Permit2,
        "../../contracts/abi/Permit2.json"
    );
}

mod collector {
    alloy::sol!(
        #![sol(all_derives)]
        DepositCollectorPermit2,
        "../../contracts/abi/DepositCollectorPermit2.json"
    );
}

mod multicall {
    alloy::sol!(
        #![sol(all_derives)]
        Multicall3,
        "../../contracts/abi/Multicall3.json"
    );
}

pub use collector::DepositCollectorPermit2;
pub use multicall::Multicall3;
pub use permit2::Permit2;
pub use purse::Purse;
