//! The machine itself, one for each thread: to set one up costs as much as a small call. And what it answered, which is
//! given again while nothing that it read has changed.

use super::signatures::Precompiles;
use super::store::Store;
use alloy::primitives::{Address, B256, Bytes, U256};
use chain::anvil::DEV_CHAIN_ID;
use revm::bytecode::opcode;
use revm::context::result::{EVMError, ResultAndState};
use revm::context::{BlockEnv, CfgEnv, Context, Evm as Machine, FrameStack, TxEnv};
use revm::database_interface::WrapDatabaseRef;
use revm::handler::instructions::EthInstructions;
use revm::handler::{EthFrame, EthPrecompiles};
use revm::interpreter::instructions::block_info;
use revm::interpreter::interpreter::EthInterpreter;
use revm::interpreter::{Host, Instruction, InstructionContext, InstructionExecResult};
use revm::primitives::AddressMap;
use revm::primitives::hardfork::SpecId;
use revm::state::Account;
use revm::{ExecuteEvm, MainContext};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;

type Within = Context<BlockEnv, TxEnv, CfgEnv, WrapDatabaseRef<Store>>;
type Ours = Machine<Within, (), EthInstructions<EthInterpreter, Within>, Precompiles, EthFrame>;

/// Answers that a thread keeps at most; then it begins anew.
const ANSWERS: usize = 8_192;
/// Gas of an instruction that asks what block this is.
const BLOCK_INFO_GAS: u16 = 2;

thread_local! {
    static MACHINE: RefCell<Option<Ours>> = const { RefCell::new(None) };
    static TOLD_TIME: Cell<bool> = const { Cell::new(false) };
    static ANSWERED: RefCell<HashMap<(Address, Vec<u8>), Answer>> = RefCell::default();
}

/// What a view answered, and everything that it read.
struct Answer {
    output: Bytes,
    codes: Vec<(Address, B256, U256)>,
    words: Vec<(Address, U256, U256)>,
}

/// Carries out a transaction. Nothing changes: what it would change comes back.
pub fn run(
    store: &Store,
    block: BlockEnv,
    tx: TxEnv,
    takes_stand_ins: bool,
) -> Result<ResultAndState, EVMError<Infallible>> {
    MACHINE.with_borrow_mut(|kept| {
        let machine = kept.get_or_insert_with(machine);
        machine.precompiles.takes_stand_ins = takes_stand_ins;
        machine.ctx.block = block;
        machine.ctx.journaled_state.database = WrapDatabaseRef(store.clone());
        let ran = machine.transact(tx);
        // Whoever writes next need not copy what lies there.
        machine.ctx.journaled_state.database = WrapDatabaseRef(Store::default());
        ran
    })
}

fn machine() -> Ours {
    let mut cfg = CfgEnv::new().with_chain_id(DEV_CHAIN_ID);
    cfg.disable_nonce_check = true;
    let spec = SpecId::default();
    let mut instruction = EthInstructions::new_mainnet_with_spec(spec);
    instruction.insert_instruction(opcode::TIMESTAMP, Instruction::new(timestamp), BLOCK_INFO_GAS);
    instruction.insert_instruction(opcode::NUMBER, Instruction::new(number), BLOCK_INFO_GAS);
    Machine {
        ctx: Context::mainnet().with_db(WrapDatabaseRef(Store::default())).with_cfg(cfg),
        inspector: (),
        instruction,
        precompiles: Precompiles { published: EthPrecompiles::new(spec), takes_stand_ins: false },
        frame_stack: FrameStack::new_prealloc(8),
    }
}

// ---- what does not change with time ----

fn timestamp<H: Host + ?Sized>(context: InstructionContext<'_, H, EthInterpreter>) -> InstructionExecResult {
    TOLD_TIME.set(true);
    block_info::timestamp(context)
}

fn number<H: Host + ?Sized>(context: InstructionContext<'_, H, EthInterpreter>) -> InstructionExecResult {
    TOLD_TIME.set(true);
    block_info::block_number(context)
}

/// From here on.
pub fn watch_time() {
    TOLD_TIME.set(false);
}

/// Whether anything asked since then what block it is or what time.
pub fn was_told_the_time() -> bool {
    TOLD_TIME.get()
}

/// Keeps what a view answered. `from` asked; that it did is the only thing in `touched` which no other question finds.
pub fn remember(asked: (Address, Vec<u8>), from: Address, touched: AddressMap<Account>, output: Bytes) {
    let (mut codes, mut words) = (Vec::new(), Vec::new());
    for (at, account) in touched.into_iter().filter(|(at, _)| *at != from) {
        codes.push((at, account.info.code_hash, account.info.balance));
        words.extend(account.storage.into_iter().map(|(index, slot)| (at, index, slot.original_value())));
    }
    ANSWERED.with_borrow_mut(|answered| {
        if answered.len() >= ANSWERS {
            answered.clear();
        }
        answered.insert(asked, Answer { output, codes, words });
    });
}

/// What it answered when everything that it read was as it is now.
pub fn recall(to: Address, data: &[u8], store: &Store) -> Option<Bytes> {
    ANSWERED.with_borrow(|answered| {
        let answer = answered.get(&(to, data.to_vec()))?;
        let same_code = |(at, hash, balance): &(Address, B256, U256)| {
            store.info(*at).map_or((B256::ZERO, U256::ZERO), |info| (info.code_hash, info.balance)) == (*hash, *balance)
        };
        let same = answer.codes.iter().all(same_code)
            && answer.words.iter().all(|(at, index, word)| store.word(*at, *index) == *word);
        same.then(|| answer.output.clone())
    })
}
