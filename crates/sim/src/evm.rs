//! A small chain in this process: accounts, contracts' bytecode in `revm`, a clock that only [`Evm::warp`] moves.
//!
//! **Invariant:** the same calls give the same state: nothing here asks what time it is or rolls dice.
//! **Invariant:** a refused call changes nothing but the sender's nonce.
//!
//! A clone is a fork: both go on from here, and neither knows of the other. Gas costs nothing unless
//! [`Evm::gas_price`] says so; no transaction signature is checked, for a sender is whoever the caller says it is.

mod deploy;
mod machine;
mod signatures;
mod store;

use alloy::primitives::{Address, Bytes, Log, U256};
use alloy::sol_types::SolCall;
use chain::{Revert, anvil::DEV_CHAIN_ID};
use revm::context::result::{EVMError, ExecutionResult, ResultAndState};
use revm::context::{BlockEnv, TxEnv};
use revm::primitives::TxKind;
use revm::state::{AccountInfo, Bytecode};
pub use signatures::stand_in;
use std::convert::Infallible;
use store::Store;

/// Seconds between two blocks: Base's.
pub const BLOCK_SECS: u64 = 2;

/// Gas that a transaction may use: below the 2^24 that Ethereum allows since Osaka, far above what any entry needs.
const GAS_LIMIT: u64 = 16_000_000;

/// A transaction that was carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// What the call returned.
    pub output: Bytes,
    /// What it logged, in order.
    pub logs: Vec<Log>,
    /// Gas it used.
    pub gas_used: u64,
}

/// A transaction was carried out, or refused with the contract's error by name. `Halted` is ours: it ran out of gas or
/// broke the machine's rules; so is `Unsent`: no chain would have taken it.
pub type Outcome = Result<Done, Revert>;

/// The chain.
#[derive(Clone, Debug)]
pub struct Evm {
    store: Store,
    number: u64,
    timestamp: u64,
    /// Wei that senders pay for a unit of gas; it goes to nobody.
    pub gas_price: u128,
    /// Signatures made by [`stand_in`] hold here, beside those on the curve.
    pub takes_stand_ins: bool,
    logs: Vec<(u64, Log)>,
}

impl Evm {
    /// An empty chain, whose present block is the first, at `timestamp` (chain seconds).
    pub fn new(timestamp: u64) -> Self {
        Self { store: Store::default(), number: 1, timestamp, gas_price: 0, takes_stand_ins: false, logs: Vec::new() }
    }

    /// The present block's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// The present block's time, chain seconds.
    pub fn now(&self) -> u64 {
        self.timestamp
    }

    /// Lets `secs` pass: a block every [`BLOCK_SECS`], at least one.
    pub fn warp(&mut self, secs: u64) {
        self.timestamp += secs;
        self.number += (secs / BLOCK_SECS).max(1);
    }

    /// Ends the present block; the next one comes `secs` after it.
    pub fn next_block(&mut self, secs: u64) {
        self.timestamp += secs;
        self.number += 1;
    }

    /// Takes out what was logged so far.
    pub fn take_logs(&mut self) -> Vec<(u64, Log)> {
        std::mem::take(&mut self.logs)
    }

    /// Sends a transaction into the present block.
    pub fn call(&mut self, from: Address, to: Address, data: impl Into<Bytes>, value: u128) -> Outcome {
        self.commit(from, TxKind::Call(to), data.into(), value)
    }

    /// Puts a contract there, by its creation code; where it lies then.
    pub fn create(&mut self, from: Address, code: Bytes) -> Result<Address, Revert> {
        let at = from.create(self.nonce(from));
        self.commit(from, TxKind::Create, code, 0)?;
        Ok(at)
    }

    /// What a view answers. Nothing changes.
    ///
    /// # Panics
    /// The answer is not of this type: another contract lies at `to`.
    pub fn ask<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, Revert> {
        let output = self.view(to, call.abi_encode())?;
        Ok(C::abi_decode_returns(&output).unwrap_or_else(|e| panic!("{} at {to}: {e}", C::SIGNATURE)))
    }

    /// The same, in bytes. Most questions are asked again and again before anything changes what they read: such an answer
    /// is given again.
    pub fn view(&self, to: Address, data: Vec<u8>) -> Result<Bytes, Revert> {
        if let Some(known) = machine::recall(to, &data, &self.store) {
            return Ok(known);
        }
        let from = Address::ZERO;
        machine::watch_time();
        let mut touched = None;
        let ran = self.run(from, TxKind::Call(to), Bytes::copy_from_slice(&data), 0);
        let output = outcome(ran.map(|ran| (touched = Some(ran.state), ran.result).1))?.output;
        if let Some(touched) = touched.filter(|_| !machine::was_told_the_time()) {
            machine::remember((to, data), from, touched, output.clone());
        }
        Ok(output)
    }

    /// What would become of a transaction. Nothing changes.
    pub fn what_if(&self, from: Address, to: Address, data: impl Into<Bytes>) -> Outcome {
        outcome(self.run(from, TxKind::Call(to), data.into(), 0).map(|done| done.result))
    }

    /// All that was ever logged, each with its block's number.
    pub fn logs(&self) -> &[(u64, Log)] {
        &self.logs
    }

    /// Wei of an account.
    pub fn wei(&self, account: Address) -> u128 {
        self.store.info(account).map_or(0, |info| info.balance.saturating_to())
    }

    /// Sets an account's wei.
    pub fn set_wei(&mut self, account: Address, wei: u128) {
        let info = self.store.info(account).cloned().unwrap_or_default();
        self.store.set_info(account, AccountInfo { balance: U256::from(wei), ..info });
    }

    /// What lies at an address; empty for a person's account.
    pub fn code(&self, at: Address) -> Bytes {
        let code = self.store.info(at).and_then(|info| info.code.as_ref());
        code.map_or_else(Bytes::new, Bytecode::original_bytes)
    }

    /// Puts runtime code at an address.
    pub fn set_code(&mut self, at: Address, code: Bytes) {
        let info = self.store.info(at).cloned().unwrap_or_default();
        self.store.set_info(at, info.with_code(Bytecode::new_raw(code)));
    }

    /// A word of a contract's storage.
    pub fn slot(&self, at: Address, index: u64) -> U256 {
        self.word(at, U256::from(index))
    }

    /// The same, of a mapping.
    pub fn word(&self, at: Address, index: U256) -> U256 {
        self.store.word(at, index)
    }

    /// Changes a word of a contract's storage, past all its rules: to show that a wrong contract is found out.
    pub fn set_slot(&mut self, at: Address, index: u64, word: U256) {
        self.store.set_word(at, U256::from(index), word);
    }

    /// Transactions of an account so far: its next one's nonce.
    pub fn nonce(&self, account: Address) -> u64 {
        self.store.info(account).map_or(0, |info| info.nonce)
    }

    fn commit(&mut self, from: Address, kind: TxKind, data: Bytes, value: u128) -> Outcome {
        let ran = self.run(from, kind, data, value).map(|ran| {
            self.store.commit(ran.state);
            ran.result
        });
        let outcome = outcome(ran);
        if let Ok(done) = &outcome {
            self.logs.extend(done.logs.iter().map(|log| (self.number, log.clone())));
        }
        outcome
    }

    fn run(
        &self,
        from: Address,
        kind: TxKind,
        data: Bytes,
        value: u128,
    ) -> Result<ResultAndState, EVMError<Infallible>> {
        machine::run(&self.store, self.block(), self.tx(from, kind, data, value), self.takes_stand_ins)
    }

    fn tx(&self, caller: Address, kind: TxKind, data: Bytes, value: u128) -> TxEnv {
        TxEnv {
            caller,
            kind,
            data,
            value: U256::from(value),
            gas_limit: GAS_LIMIT,
            gas_price: self.gas_price,
            chain_id: Some(DEV_CHAIN_ID),
            ..TxEnv::default()
        }
    }

    fn block(&self) -> BlockEnv {
        BlockEnv { number: U256::from(self.number), timestamp: U256::from(self.timestamp), ..BlockEnv::default() }
    }
}

fn outcome<E: std::fmt::Display>(result: Result<ExecutionResult, E>) -> Outcome {
    match result {
        Ok(ExecutionResult::Success { output, logs, gas, .. }) => {
            Ok(Done { output: output.into_data(), logs, gas_used: gas.tx_gas_used() })
        }
        Ok(ExecutionResult::Revert { output, .. }) => Err(Revert::decode(&output)),
        Ok(ExecutionResult::Halt { reason, .. }) => Err(named("Halted", format!("{reason:?}"))),
        Err(error) => Err(named("Unsent", error.to_string())),
    }
}

fn named(name: &str, text: String) -> Revert {
    Revert { name: name.to_owned(), text, data: Bytes::new() }
}

#[cfg(test)]
mod tests;
