//! Puts the contracts on a simulated chain as a development chain has them: ours where the creator's nonces say, the
//! published ones of others at their published addresses (as our own implementations of their interfaces).

use super::Evm;
use crate::bindings::{DepositCollectorPermit2, Multicall3, Permit2};
use alloy::primitives::{Address, Bytes};
use chain::bindings::{Addresses, BatchSettlement, DepositCollector3009};
use chain::deploy::{Creations, MarketParams, creations};
use pay::facilitator::multicall::MULTICALL3;
use pay::scheme::channel::{BATCH_SETTLEMENT, COLLECTOR_3009, COLLECTOR_PERMIT2};
use pay::scheme::permit2::PERMIT2;

/// Who deploys, and has no rights afterwards.
const DEPLOYER: Address = Address::repeat_byte(0xde);

impl Evm {
    /// Every contract of a development chain.
    ///
    /// # Panics
    /// A contract refuses its arguments: the market's numbers make no market.
    pub fn deploy(&mut self, market: MarketParams) -> Addresses {
        let Creations { codes, addresses } = creations(DEPLOYER, 0, market);
        for (name, code) in codes {
            self.create(DEPLOYER, code).unwrap_or_else(|e| panic!("{name} cannot be deployed: {}", e.text));
        }
        for (at, code) in [
            (BATCH_SETTLEMENT, &BatchSettlement::BYTECODE),
            (COLLECTOR_3009, &DepositCollector3009::BYTECODE),
            (COLLECTOR_PERMIT2, &DepositCollectorPermit2::BYTECODE),
            (PERMIT2, &Permit2::BYTECODE),
            (MULTICALL3, &Multicall3::BYTECODE),
        ] {
            self.publish(at, code);
        }
        addresses
    }

    /// Runs a creation and moves what it made to `at`.
    fn publish(&mut self, at: Address, creation: &Bytes) {
        let made = self.create(DEPLOYER, creation.clone()).expect("a development contract takes no arguments");
        let runtime = self.code(made);
        self.set_code(at, runtime);
    }
}
