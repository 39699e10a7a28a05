//! Signatures that cost next to nothing to make and to check, for worlds in which nobody tries to forge one: a signature
//! on the curve costs as much as a dozen calls of a contract. Anybody could make them, so whoever tries what a stranger's
//! signature can do keeps to the curve.

use alloy::primitives::{Address, B256, Bytes, U256, address, keccak256};
use revm::context_interface::{Cfg, ContextTr};
use revm::handler::{EthPrecompiles, PrecompileProvider, precompile_output_to_interpreter_result};
use revm::interpreter::{CallInputs, InterpreterResult};
use revm::precompile::PrecompileOutput;
use revm::primitives::AddressSet;

/// Of the recovery of a signer.
const ECRECOVER: Address = address!("0000000000000000000000000000000000000001");
const ECRECOVER_GAS: u64 = 3_000;

/// r names signer and digest, s is the signer: low, as contracts want it.
pub fn stand_in(signer: Address, digest: B256) -> Bytes {
    [mark(signer, digest).as_slice(), &[0; 12], signer.as_slice(), &[27]].concat().into()
}

fn mark(signer: Address, digest: B256) -> B256 {
    keccak256([b"stand-in".as_slice(), signer.as_slice(), digest.as_slice()].concat())
}

/// Who signed, if this input of `ecrecover` (digest, v, r, s) holds a stand-in.
fn signer(input: &[u8]) -> Option<Address> {
    let (digest, r, s) = (input.get(..32)?, input.get(64..96)?, input.get(96..128)?);
    let signer = Address::from_slice(&s[12..]);
    (mark(signer, B256::from_slice(digest)) == r).then_some(signer)
}

/// The chain's own, but for the stand-ins where they are taken.
#[derive(Clone, Debug)]
pub struct Precompiles {
    pub published: EthPrecompiles,
    pub takes_stand_ins: bool,
}

impl<CTX: ContextTr> PrecompileProvider<CTX> for Precompiles {
    type Output = InterpreterResult;

    fn set_spec(&mut self, spec: <CTX::Cfg as Cfg>::Spec) -> bool {
        PrecompileProvider::<CTX>::set_spec(&mut self.published, spec)
    }

    fn run(&mut self, context: &mut CTX, inputs: &CallInputs) -> Result<Option<InterpreterResult>, String> {
        if self.takes_stand_ins && inputs.bytecode_address == ECRECOVER {
            let found = signer(&inputs.input.as_bytes(context));
            if let Some(signer) = found {
                let word: [u8; 32] = U256::from_be_slice(signer.as_slice()).to_be_bytes();
                let output = PrecompileOutput::new(ECRECOVER_GAS, word.to_vec().into(), inputs.reservoir);
                return Ok(Some(precompile_output_to_interpreter_result(output, inputs.gas_limit)));
            }
        }
        self.published.run(context, inputs)
    }

    fn warm_addresses(&self) -> &AddressSet {
        self.published.warm_addresses()
    }
}
