//! Orders by people: pause, resume, stop, evict. Each steward signs the same order on its own machine; whoever
//! has k signatures submits them, with any key that can pay the gas.

use alloy::primitives::{Address, Bytes, U256};
use alloy::signers::local::PrivateKeySigner;
use anyhow::{Context, Result, ensure};
use chain::Chain;
use chain::bindings::Approval;
use chain::orders::{Order, approval, domain, recover, rescue_argument};
use chain::sender::{Done, Tx, send_once};
use chain::treasury::calls;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a quorum can order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    Pause,
    Resume,
    Stop,
    /// 0 keeps no lease: every host is shown the door.
    Evict {
        keep: u64,
    },
    /// Chain seconds.
    ExtendMandate {
        until: u64,
    },
    /// `term` in seconds. The order names all three.
    Rescue {
        offer: u64,
        term: u32,
        prepay_uusdc: u128,
    },
}

impl Action {
    /// The word in the signed order: the name of the treasury's entry.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Stop => "stop",
            Self::Evict { .. } => "evict",
            Self::ExtendMandate { .. } => "extendMandate",
            Self::Rescue { .. } => "rescue",
        }
    }

    pub fn argument(self) -> U256 {
        match self {
            Self::Pause | Self::Resume | Self::Stop => U256::ZERO,
            Self::Evict { keep } => U256::from(keep),
            Self::ExtendMandate { until } => U256::from(until),
            Self::Rescue { offer, term, prepay_uusdc } => rescue_argument(offer, term, prepay_uusdc),
        }
    }

    fn call(self, a: Approval) -> Bytes {
        match self {
            Self::Pause => calls::pause(a),
            Self::Resume => calls::resume(a),
            Self::Stop => calls::stop(a),
            Self::Evict { keep } => calls::evict(keep, a),
            Self::ExtendMandate { until } => calls::extend_mandate(until, a),
            Self::Rescue { offer, term, prepay_uusdc } => calls::rescue(offer, term, prepay_uusdc, a),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Evict { keep: 0 } => f.write_str("evict every host"),
            Self::Evict { keep } => write!(f, "evict all but lease {keep}"),
            Self::ExtendMandate { until } => write!(f, "extend the mandate to {until}"),
            Self::Rescue { offer, .. } => write!(f, "rescue on offer {offer}"),
            _ => f.write_str(self.word()),
        }
    }
}

/// One steward's signature over an order, as it is passed from hand to hand (JSON).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedOrder {
    pub chain_id: u64,
    pub treasury: Address,
    pub action: String,
    pub argument: U256,
    pub nonce: u64,
    /// Chain seconds.
    pub deadline: u64,
    pub signer: Address,
    pub signature: Bytes,
}

impl SignedOrder {
    fn order(&self) -> Order {
        Order::new(&self.action, self.argument, U256::from(self.nonce), self.deadline)
    }

    /// Who really signed it; an error when that is not who it says.
    pub fn verify(&self) -> Result<Address> {
        let signer = recover(&self.order(), &domain(self.chain_id, self.treasury), &self.signature)?;
        ensure!(signer == self.signer, "the signature is of {signer}, not of {}", self.signer);
        Ok(signer)
    }
}

/// The order as it has to be signed now: with the treasury's next order number, good for `valid_secs` of chain
/// time. All signers of one order need the same deadline, so one prepares and the others sign its text.
pub async fn prepare(chain: &Chain, treasury: Address, action: Action, valid_secs: u64) -> Result<Order> {
    let client = chain.treasury(treasury);
    let state = client.state().await.with_context(|| format!("the treasury {treasury} cannot be read"))?;
    let head = chain.head().await.context("the chain's time cannot be read")?;
    Ok(Order::new(action.word(), action.argument(), state.orderNonce, head.timestamp + valid_secs))
}

/// Signs an order with a steward's order key.
pub fn sign(key: &PrivateKeySigner, chain_id: u64, treasury: Address, order: &Order) -> Result<SignedOrder> {
    Ok(SignedOrder {
        chain_id,
        treasury,
        action: order.action.clone(),
        argument: order.argument,
        nonce: u64::try_from(order.nonce)
            .with_context(|| format!("the order's number {} is too large", order.nonce))?,
        deadline: order.deadline,
        signer: key.address(),
        signature: chain::orders::sign(order, &domain(chain_id, treasury), key)?,
    })
}

/// Submits an order with the signatures given, paid by `payer`. Refuses before sending when they are too few, of
/// strangers, or over different orders.
pub async fn submit(
    chain: &Chain,
    payer: &PrivateKeySigner,
    treasury: Address,
    action: Action,
    signed: &[SignedOrder],
) -> Result<Done> {
    let first = signed.first().context("no signatures were given")?;
    let order = first.order();
    for one in signed {
        ensure!(one.order() == order, "{} signed another order than {}", one.signer, first.signer);
        ensure!((one.chain_id, one.treasury) == (chain.chain_id(), treasury), "signed for another treasury or chain");
        one.verify()?;
    }
    ensure!(
        (order.action.as_str(), order.argument) == (action.word(), action.argument()),
        "the signatures are for `{} {}`, not for `{action}`",
        order.action,
        order.argument
    );
    let birth = chain.treasury(treasury).birth().await.with_context(|| format!("no treasury at {treasury}"))?;
    let signatures: Vec<Bytes> = signed.iter().map(|s| s.signature.clone()).collect();
    let approval =
        approval(&order, &domain(chain.chain_id(), treasury), &signatures, &birth.stewards, birth.threshold.into())?;
    let tx = Tx::call(treasury, action.call(approval), action.word());
    send_once(chain, payer, tx, 1).await.with_context(|| format!("`{action}` was not accepted"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::B256;

    fn signed() -> SignedOrder {
        let key = PrivateKeySigner::from_bytes(&B256::repeat_byte(1)).unwrap();
        let order = Order::new("pause", U256::ZERO, U256::from(3), 1000);
        sign(&key, 31337, Address::repeat_byte(9), &order).unwrap()
    }

    #[test]
    fn a_signed_order_survives_json_and_names_its_signer() {
        let text = serde_json::to_string(&signed()).unwrap();
        let read: SignedOrder = serde_json::from_str(&text).unwrap();
        assert_eq!(read, signed());
        assert_eq!(read.verify().unwrap(), signed().signer);
    }

    #[test]
    fn a_changed_order_is_not_the_signers() {
        for bad in [
            SignedOrder { action: "stop".into(), ..signed() },
            SignedOrder { argument: U256::ONE, ..signed() },
            SignedOrder { nonce: 4, ..signed() },
            SignedOrder { deadline: 1001, ..signed() },
            SignedOrder { chain_id: 1, ..signed() },
            SignedOrder { treasury: Address::ZERO, ..signed() },
            SignedOrder { signer: Address::ZERO, ..signed() },
        ] {
            assert!(bad.verify().is_err(), "{bad:?}");
        }
    }
}
