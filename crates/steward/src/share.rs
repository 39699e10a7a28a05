//! Whether to give this steward's share of the memory key away: pure checks, each refusal with a name.
//!
//! A share goes to an operator that has to restore, and to nobody else: after takeover (after a rescue, too) and after an
//! eviction that kept another host, until its first commit. A handover's successor gets the memory from its predecessor. An
//! old request is worth nothing: it names its epoch, and the key in it is the only one that the answer is sealed to.

use crate::ack::OnChain;
use crate::refusal::Refusal;
use alloy::primitives::U256;
use chain::bindings::State;
use store::checkpoint::ShareRequest;

/// What a share is given for: the chain's checkpoint, for whoever acts for the treasury now.
///
/// `state` is what all endpoints of this steward say of the treasury, `chain` what it says about checkpoints.
pub fn check(chain: &OnChain, state: &State, request: &ShareRequest) -> Result<(), Refusal> {
    if !chain.living || chain.operator.is_zero() {
        return Err(Refusal::WrongStage);
    }
    request.verify(chain.operator, chain.treasury, chain.chain_id, chain.epoch)?;
    // `restoring` ends with the first commit.
    if !state.restoring || state.activeLease != U256::from(request.lease) {
        return Err(Refusal::NotRestoring);
    }
    if chain.checkpoint_digest.is_zero() {
        return Err(Refusal::NotStored { what: "an acknowledged checkpoint".into() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloy::primitives::{Address, B256};
    use alloy::signers::local::PrivateKeySigner;

    const TREASURY: Address = Address::repeat_byte(1);

    fn key(n: u8) -> PrivateKeySigner {
        PrivateKeySigner::from_bytes(&B256::repeat_byte(n)).unwrap()
    }

    /// Alive (1), in epoch 3, restoring on lease 9, by the key of `2`.
    fn state() -> State {
        State {
            stage: 1,
            operator: key(2).address(),
            epoch: 3,
            restoring: true,
            activeLease: U256::from(9),
            checkpointSeq: 7,
            checkpointDigest: B256::repeat_byte(7),
            ..State::default()
        }
    }

    fn request(signer: u8, change: impl FnOnce(&mut ShareRequest)) -> ShareRequest {
        let recipient = "age1one".to_owned();
        let mut request = ShareRequest {
            treasury: TREASURY,
            chain_id: 31337,
            epoch: 3,
            lease: 9,
            recipient,
            signature: String::new(),
        };
        change(&mut request);
        request.sign(&key(signer)).unwrap();
        request
    }

    fn code(state: &State, request: &ShareRequest) -> &'static str {
        check(&OnChain::of(31337, TREASURY, state), state, request).map_or_else(|refusal| refusal.code(), |()| "given")
    }

    #[test]
    fn the_operator_that_has_to_restore_gets_one_and_nobody_else() {
        assert_eq!(code(&state(), &request(2, |_| ())), "given");
        for (bad, why) in [
            (request(5, |_| ()), "wrong_operator"),
            (ShareRequest { recipient: "age1another".into(), ..request(2, |_| ()) }, "wrong_operator"),
            (request(2, |r| r.epoch = 2), "wrong_epoch"),
            (request(2, |r| r.lease = 8), "not_restoring"),
            (request(2, |r| r.treasury = Address::repeat_byte(2)), "wrong_agent"),
        ] {
            assert_eq!(code(&state(), &bad), why);
        }
    }

    #[test]
    fn an_old_request_is_worth_nothing() {
        let request = request(2, |_| ());
        assert_eq!(code(&State { restoring: false, ..state() }, &request), "not_restoring");
        assert_eq!(code(&State { epoch: 4, ..state() }, &request), "wrong_epoch");
        assert_eq!(code(&State { operator: key(4).address(), epoch: 4, ..state() }, &request), "wrong_operator");
        assert_eq!(code(&State { operator: Address::ZERO, ..state() }, &request), "wrong_stage");
        assert_eq!(code(&State { checkpointDigest: B256::ZERO, ..state() }, &request), "not_stored");
    }
}
