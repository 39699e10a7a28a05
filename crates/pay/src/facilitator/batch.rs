//! When settlements that wait are sent, and what they cost together.

use crate::Usdc;

/// Gas of one kind of call: in a transaction of its own, and in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowGas {
    pub single: u64,
    /// What the transaction and Multicall3 cost without rows.
    pub batch: u64,
    pub row: u64,
}

/// Of an EIP-3009 transfer. Measured on the development token (`crates/pay/tests/it/batches.rs` holds it to it): one row
/// alone is cheaper without Multicall3, from two on the batch is.
pub const TRANSFER_GAS: RowGas = RowGas { single: 75_000, batch: 42_000, row: 40_000 };
/// Of a treasury's `settleExact`: alone 111,034 (docs/concepts/fees.md); a row less by a transaction's 21,000 and what the
/// row before has warmed, a guess.
pub const SETTLE_EXACT_GAS: RowGas = RowGas { single: 112_000, batch: 42_000, row: 85_000 };

/// What gas costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GasPrice {
    /// Wei a unit.
    pub wei: u128,
    /// Micro-USDC an ether. Whoever runs this says it; nothing here asks an oracle.
    pub ether: Usdc,
}

impl GasPrice {
    /// Micro-USDC, rounded up.
    pub fn cost_up(&self, gas: u64) -> Usdc {
        const WEI: u128 = 1_000_000_000_000_000_000;
        let wei = self.wei.saturating_mul(u128::from(gas));
        // Whole ethers and the rest apart: their product with a price stays far below 2^128.
        let (whole, rest) = (wei / WEI, wei % WEI);
        let micro = self.ether.micro();
        Usdc(whole.saturating_mul(micro).saturating_add(rest.saturating_mul(micro).div_ceil(WEI)))
    }
}

impl RowGas {
    /// Of so many rows in one transaction.
    pub fn of(&self, rows: usize) -> u64 {
        let rows = u64::try_from(rows).unwrap_or(u64::MAX);
        if rows <= 1 { self.single } else { self.batch.saturating_add(rows.saturating_mul(self.row)) }
    }
}

/// How long settlements may wait for company.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchPolicy {
    pub gas: RowGas,
    /// Sent once the fee is at most this share of the sum, in millionths.
    pub fee_ppm_max: u32,
    /// Sent once this much waits: what is lost if the payers empty their accounts meanwhile.
    pub sum_max: Usdc,
    /// Sent when the oldest has waited so long.
    pub wait_ms_max: u64,
    /// In one transaction.
    pub rows_max: usize,
}

/// What to do with settlements that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    Now,
    /// Ask again when another one comes, at the latest after this.
    WithinMs(u64),
}

/// Whether to send what waits: `amounts` in their order, the oldest for `oldest_ms`.
pub fn due(policy: &BatchPolicy, price: &GasPrice, amounts: &[Usdc], oldest_ms: u64) -> Due {
    let sum: Usdc = amounts.iter().copied().sum();
    let fee = price.cost_up(policy.gas.of(amounts.len())).micro();
    let is_cheap = fee.saturating_mul(1_000_000) <= sum.micro().saturating_mul(u128::from(policy.fee_ppm_max));
    if is_cheap || sum >= policy.sum_max || amounts.len() >= policy.rows_max || oldest_ms >= policy.wait_ms_max {
        return Due::Now;
    }
    Due::WithinMs(policy.wait_ms_max - oldest_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: BatchPolicy = BatchPolicy {
        gas: TRANSFER_GAS,
        fee_ppm_max: 100_000,
        sum_max: Usdc(1_000_000),
        wait_ms_max: 2_000,
        rows_max: 50,
    };
    /// 0.1 gwei, 3,000 USDC.
    const PRICE: GasPrice = GasPrice { wei: 100_000_000, ether: Usdc(3_000_000_000) };

    #[test]
    fn gas_is_rounded_up_and_never_overflows() {
        assert_eq!(PRICE.cost_up(0), Usdc(0));
        assert_eq!(PRICE.cost_up(1), Usdc(1));
        // 75,000 x 1e8 wei = 7.5e-6 ether = 0.0225 USDC.
        assert_eq!(PRICE.cost_up(TRANSFER_GAS.single), Usdc(22_500));
        let dear = GasPrice { wei: u128::MAX, ether: Usdc::MAX };
        assert_eq!(dear.cost_up(u64::MAX), Usdc::MAX);
    }

    #[test]
    fn a_batch_waits_until_its_fee_is_a_small_share_or_too_much_is_at_risk() {
        // A fee of 0.0225 is a tenth of 0.225.
        assert_eq!(due(&POLICY, &PRICE, &[Usdc(225_000)], 0), Due::Now);
        assert_eq!(due(&POLICY, &PRICE, &[Usdc(224_999)], 0), Due::WithinMs(2_000));
        assert_eq!(due(&POLICY, &PRICE, &[Usdc(1)], 1_500), Due::WithinMs(500));
        assert_eq!(due(&POLICY, &PRICE, &[Usdc(1)], 2_000), Due::Now, "nobody waits for ever");
        assert_eq!(due(&POLICY, &PRICE, &[Usdc(1); 50], 0), Due::Now, "full");
        let dear = GasPrice { wei: 1_000_000_000_000, ..PRICE };
        assert_eq!(due(&POLICY, &dear, &[Usdc(999_999)], 0), Due::WithinMs(2_000));
        assert_eq!(due(&POLICY, &dear, &[Usdc(500_000), Usdc(500_000)], 0), Due::Now, "at risk");
        // Company makes it cheaper: ten rows of 0.14 for 442,000 gas.
        assert_eq!(due(&POLICY, &PRICE, &[Usdc(140_000)], 0), Due::WithinMs(2_000));
        assert_eq!(due(&BatchPolicy { sum_max: Usdc::MAX, ..POLICY }, &PRICE, &[Usdc(140_000); 10], 0), Due::Now);
    }
}
