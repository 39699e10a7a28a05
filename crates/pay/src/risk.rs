//! When a payment with a transaction of its own is settled, and what of the answer is held back until then: a seller's
//! policy over the amount, the payer's record and the chain's finality (docs/decisions/0022 and 0029).

use crate::book::Timing;
use crate::{Settle, Usdc};

/// A payment that is settled after it was served must be valid this much longer, chain seconds: for a long answer, the
/// batch's wait, and a second try. A guess.
pub const LATE_SECS_MIN: u64 = 150;

/// A seller's choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RiskPolicy {
    /// Most that may be open at once for a payment to be settled after it was served. Zero: none is.
    pub settle_after: Usdc,
    /// A payment of at most this much counts once it is mined. A larger one counts once it is final, and nothing of its
    /// answer leaves before that, whoever pays.
    pub final_above: Usdc,
    /// Blocks that a final settlement is under at least, its own counted. 1: mined is final.
    pub final_blocks: u32,
}

/// What is known of a payment's circumstances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Circumstances {
    /// A call of this payer was paid here before.
    pub known_payer: bool,
    /// Served or being served and not settled, all payers together: [`crate::ChannelBook::exposure`].
    pub open: Usdc,
    /// Somebody else's facilitator settles, which leaves no record to refund from.
    pub another_settles: bool,
    /// Chain seconds.
    pub now: u64,
}

/// When a payment is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// While it is served, since the payee can give it back.
    Beside(Hold),
    /// When all is made and before its last byte leaves, since nobody can give it back.
    AtEnd(Hold),
    /// After it was served, together with others.
    After,
}

impl When {
    /// What is not settled beside its answer is settled only when something was delivered for it.
    pub fn timing(self) -> Timing {
        match self {
            Self::Beside(_) => Timing::AtOnce,
            Self::AtEnd(_) | Self::After => Timing::OnDelivery,
        }
    }
}

/// What of an answer stays here until its settlement is under so many blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub what: Held,
    /// Its own counted, at least 1.
    pub blocks: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Everything,
    LastByte,
}

impl RiskPolicy {
    pub fn when(&self, settlement: &Settle, of: &Circumstances) -> When {
        let counts_once_mined = settlement.value() <= self.final_above;
        let hold = if !counts_once_mined {
            Hold { what: Held::Everything, blocks: self.final_blocks.max(1) }
        } else if of.known_payer && settlement.is_signed_by_key() {
            Hold { what: Held::LastByte, blocks: 1 }
        } else {
            Hold { what: Held::Everything, blocks: 1 }
        };
        let Settle::Exact(terms) = settlement else { return When::AtEnd(hold) };
        if !terms.is_signed_by_key {
            // A contract may change its mind as long as it has not paid.
            return When::Beside(hold);
        }
        let is_long_valid = terms.valid_before >= of.now.saturating_add(LATE_SECS_MIN);
        let has_room = terms.value <= self.settle_after.saturating_sub(of.open);
        if counts_once_mined && of.known_payer && is_long_valid && has_room {
            When::After
        } else if of.another_settles {
            When::AtEnd(hold)
        } else {
            When::Beside(hold)
        }
    }
}

/// Whether a settlement in `block` is under `blocks` blocks, its own counted, when `head` is the newest.
pub fn is_under(block: u64, blocks: u32, head: u64) -> bool {
    head.saturating_add(1) >= block.saturating_add(u64::from(blocks))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SettleExact;
    use crate::scheme::upto::{Permit2Payment, Proxy};

    const NOW: u64 = 1_000;
    const POLICY: RiskPolicy = RiskPolicy { settle_after: Usdc(100), final_above: Usdc(500), final_blocks: 10 };
    const STRANGER: Circumstances =
        Circumstances { known_payer: false, open: Usdc::ZERO, another_settles: false, now: NOW };
    const KNOWN: Circumstances = Circumstances { known_payer: true, ..STRANGER };
    /// Until it is mined, and until it is final.
    const FIRST_BYTE: Hold = Hold { what: Held::Everything, blocks: 1 };
    const LAST_BYTE: Hold = Hold { what: Held::LastByte, blocks: 1 };
    const FINAL: Hold = Hold { what: Held::Everything, blocks: 10 };

    fn exact(value: u128) -> SettleExact {
        SettleExact {
            payer: [1; 20],
            value: Usdc(value),
            valid_after: 0,
            valid_before: NOW + LATE_SECS_MIN,
            nonce: [2; 32],
            signature: vec![0; 65],
            is_signed_by_key: true,
        }
    }

    fn when(terms: SettleExact, of: Circumstances) -> When {
        POLICY.when(&Settle::Exact(terms), &of)
    }

    #[test]
    fn only_a_key_with_a_record_is_settled_after_it_was_served_and_only_while_there_is_room() {
        assert_eq!(when(exact(100), KNOWN), When::After);
        assert_eq!(when(exact(101), KNOWN), When::Beside(LAST_BYTE), "no room");
        assert_eq!(when(exact(100), Circumstances { open: Usdc(1), ..KNOWN }), When::Beside(LAST_BYTE), "no room left");
        assert_eq!(when(exact(100), STRANGER), When::Beside(FIRST_BYTE), "no record");
        let short = SettleExact { valid_before: NOW + LATE_SECS_MIN - 1, ..exact(100) };
        assert_eq!(when(short, KNOWN), When::Beside(LAST_BYTE), "it could expire");
        let contract = SettleExact { is_signed_by_key: false, ..exact(100) };
        assert_eq!(when(contract, KNOWN), When::Beside(FIRST_BYTE), "a contract may change its mind");
    }

    /// Another's facilitator leaves no record, so nothing is sent to it before the answer is made.
    #[test]
    fn anothers_facilitator_settles_at_the_end() {
        let another = |of| Circumstances { another_settles: true, ..of };
        assert_eq!(when(exact(100), another(STRANGER)), When::AtEnd(FIRST_BYTE));
        assert_eq!(when(exact(101), another(KNOWN)), When::AtEnd(LAST_BYTE));
        assert_eq!(when(exact(100), another(KNOWN)), When::After);
        assert_eq!(when(exact(501), another(KNOWN)), When::AtEnd(FINAL));
        let contract = SettleExact { is_signed_by_key: false, ..exact(100) };
        assert_eq!(when(contract, another(KNOWN)), When::Beside(FIRST_BYTE), "a contract may change its mind");
    }

    /// Beyond the bound no record helps: nothing leaves before the money is there to stay.
    #[test]
    fn a_large_payment_counts_once_it_is_final() {
        let roomy = RiskPolicy { settle_after: Usdc(1_000_000), ..POLICY };
        let by = |policy: RiskPolicy, value, of| policy.when(&Settle::Exact(exact(value)), &of);
        assert_eq!(by(POLICY, 500, KNOWN), When::Beside(LAST_BYTE));
        assert_eq!(by(roomy, 500, KNOWN), When::After);
        for of in [KNOWN, STRANGER] {
            assert_eq!(by(POLICY, 501, of), When::Beside(FINAL));
            assert_eq!(by(roomy, 501, of), When::Beside(FINAL), "never after it was served");
        }
        let mined_is_final = RiskPolicy { final_blocks: 1, ..POLICY };
        assert_eq!(by(mined_is_final, 501, KNOWN), When::Beside(FIRST_BYTE));
        assert_eq!(by(RiskPolicy { final_above: Usdc::ZERO, ..POLICY }, 1, KNOWN), When::Beside(FINAL), "all of them");
        let contract = SettleExact { is_signed_by_key: false, ..exact(501) };
        assert_eq!(when(contract, KNOWN), When::Beside(FINAL));
    }

    #[test]
    fn what_nobody_can_give_back_is_settled_at_the_end() {
        let by_permit2 = |amount, is_signed_by_key, of: Circumstances| {
            let payment = Permit2Payment {
                proxy: Proxy::Exact,
                payer: [1; 20],
                token: [3; 20],
                pay_to: [4; 20],
                amount: Usdc(amount),
                nonce: [2; 32],
                valid_after: 0,
                deadline: NOW + LATE_SECS_MIN,
                signature: vec![0; 65],
                is_signed_by_key,
                permit: None,
            };
            POLICY.when(&Settle::Permit2(payment), &of)
        };
        assert_eq!(by_permit2(1, true, KNOWN), When::AtEnd(LAST_BYTE));
        assert_eq!(by_permit2(1, true, STRANGER), When::AtEnd(FIRST_BYTE));
        assert_eq!(by_permit2(1, false, KNOWN), When::AtEnd(FIRST_BYTE));
        assert_eq!(by_permit2(501, true, KNOWN), When::AtEnd(FINAL));
    }

    #[test]
    fn a_settlements_own_block_is_the_first_that_it_is_under() {
        assert!(is_under(7, 1, 7) && !is_under(8, 1, 7), "mined");
        assert!(!is_under(7, 10, 15) && is_under(7, 10, 16) && is_under(7, 10, 17));
        assert!(!is_under(u64::MAX, 10, 16) && is_under(0, 1, 0));
    }
}
