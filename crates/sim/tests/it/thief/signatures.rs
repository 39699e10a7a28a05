//! Money that is moved by a signature instead of a call: every kind that the token, Permit2 and the channels take, with
//! the treasury and the purse as the one who pays, signed by the stolen keys.

use super::Thief;
use super::scene::{Scene, channel_between, deposit, purse_signature};
use super::tries::Try;
use alloy::primitives::{Address, B256, Bytes, U256, keccak256};
use alloy::signers::local::PrivateKeySigner;
use alloy::sol_types::{SolCall, SolStruct, SolValue};
use chain::bindings::TestUSDC;
use pay::scheme::channel::BATCH_SETTLEMENT;
use pay::scheme::permit2::{self, PERMIT2, Permit};
use sim::bindings::Permit2;
use sim::world::sign;

alloy::sol! {
    /// EIP-3009's other two. Field names and order are part of the type hashes.
    struct ReceiveWithAuthorization {
        address from;
        address to;
        uint256 value;
        uint256 validAfter;
        uint256 validBefore;
        bytes32 nonce;
    }
    struct CancelAuthorization {
        address authorizer;
        bytes32 nonce;
    }
    /// What a token needs no signature for.
    function transferFrom(address from, address to, uint256 value) external returns (bool);
    /// ERC-4337, and what smart accounts are usually called with.
    function validateUserOp((address,uint256,bytes,bytes,bytes32,uint256,bytes32,bytes,bytes) op, bytes32 hash, uint256 missing) external returns (uint256);
    function execute(address to, uint256 value, bytes data) external;
    /// ERC-1271.
    function isValidSignature(bytes32 hash, bytes signature) external view returns (bytes4);
}

pub fn tries(scene: &Scene, thief: &Thief) -> Vec<Try> {
    let (treasury, usdc) = (scene.world.treasury, scene.world.at.usdc);
    let me = thief.account.address();
    let mut tries = Vec::new();
    let mut add = |entry: &str, to: Address, data: Vec<u8>| {
        tries.push(Try { entry: entry.to_owned(), from: me, to, data: data.into(), gas_price: 0 });
    };
    for payer in [treasury, scene.purse] {
        let all = amount(scene, payer);
        add("token.transferFrom", usdc, transferFromCall { from: payer, to: me, value: U256::from(all) }.abi_encode());
        for signer in signers(scene, thief) {
            for (entry, to, data) in signed(scene, payer, &signer, me, all) {
                add(entry, to, data);
            }
        }
    }
    let spend = TestUSDC::transferCall { to: me, value: U256::from(1) }.abi_encode();
    add("ERC-4337 execute", treasury, executeCall { to: usdc, value: U256::ZERO, data: spend.into() }.abi_encode());
    let op = (
        treasury,
        U256::ZERO,
        Bytes::new(),
        Bytes::new(),
        B256::ZERO,
        U256::ZERO,
        B256::ZERO,
        Bytes::new(),
        Bytes::new(),
    );
    add(
        "ERC-4337 validateUserOp",
        treasury,
        validateUserOpCall { op, hash: B256::ZERO, missing: U256::ZERO }.abi_encode(),
    );
    let by = sign(thief.first(), B256::ZERO);
    add("ERC-1271", treasury, isValidSignatureCall { hash: B256::ZERO, signature: by }.abi_encode());
    tries
}

/// What the purse takes, by whoever the thief has that is operator.
pub fn from_purse(scene: &Scene, thief: &Thief) -> Option<Try> {
    let signer = thief.held(scene.world.state().operator)?;
    let me = thief.account.address();
    let (entry, to, data) = signed(scene, scene.purse, &signer, me, amount(scene, scene.purse)).swap_remove(0);
    Some(Try { entry: entry.to_owned(), from: me, to, data: data.into(), gas_price: 0 })
}

/// The stolen keys, and the thief's own if it made that one operator.
fn signers(scene: &Scene, thief: &Thief) -> Vec<PrivateKeySigner> {
    let operator = thief.held(scene.world.state().operator);
    let own = operator.filter(|key| thief.stolen.iter().all(|stolen| stolen.address() != key.address()));
    thief.stolen.iter().cloned().chain(own).collect()
}

/// All of it, as far as a purse would hold it.
fn amount(scene: &Scene, payer: Address) -> u128 {
    scene.world.usdc(payer).min(scene.world.terms.options.purseMax)
}

/// What one signer can sign for one payer.
fn signed(
    scene: &Scene,
    payer: Address,
    signer: &PrivateKeySigner,
    me: Address,
    all: u128,
) -> Vec<(&'static str, Address, Vec<u8>)> {
    let (usdc, domain) = (scene.world.at.usdc, scene.world.token_domain());
    let (value, zero, ever) = (U256::from(all), U256::ZERO, U256::MAX);
    // Never the same nonce twice, or a second theft would be refused as the first one's copy.
    let (now, loot) = (scene.world.evm.now(), scene.world.usdc(me));
    let nonce = keccak256((payer, signer.address(), now, loot).abi_encode());
    let transfer = pay::scheme::exact::TransferWithAuthorization {
        from: payer,
        to: me,
        value,
        validAfter: zero,
        validBefore: ever,
        nonce,
    };
    let receive = ReceiveWithAuthorization { from: payer, to: me, value, validAfter: zero, validBefore: ever, nonce };
    let cancel = CancelAuthorization { authorizer: payer, nonce };
    let by_transfer = sign(signer, domain.digest(&transfer));
    let by_receive = sign(signer, domain.digest_of(receive.eip712_hash_struct()));
    let by_cancel = sign(signer, domain.digest_of(cancel.eip712_hash_struct()));
    let wrapped = |by: &Bytes| purse_signature(me, all, nonce, by.clone());
    let rsv = |by: &Bytes| (by[64], B256::from_slice(&by[..32]), B256::from_slice(&by[32..64]));

    let mut tries = Vec::new();
    for signature in [wrapped(&by_transfer), by_transfer.clone()] {
        let call = TestUSDC::transferWithAuthorization_0Call {
            from: payer,
            to: me,
            value,
            validAfter: zero,
            validBefore: ever,
            nonce,
            signature,
        };
        tries.push(("EIP-3009 transfer", usdc, call.abi_encode()));
    }
    let (v, r, s) = rsv(&by_transfer);
    let call = TestUSDC::transferWithAuthorization_1Call {
        from: payer,
        to: me,
        value,
        validAfter: zero,
        validBefore: ever,
        nonce,
        v,
        r,
        s,
    };
    tries.push(("EIP-3009 transfer", usdc, call.abi_encode()));
    for signature in [wrapped(&by_receive), by_receive.clone()] {
        let call = TestUSDC::receiveWithAuthorization_0Call {
            from: payer,
            to: me,
            value,
            validAfter: zero,
            validBefore: ever,
            nonce,
            signature,
        };
        tries.push(("EIP-3009 receive", usdc, call.abi_encode()));
    }
    for signature in [wrapped(&by_cancel), by_cancel] {
        let call = TestUSDC::cancelAuthorization_1Call { authorizer: payer, nonce, signature };
        tries.push(("EIP-3009 cancel", usdc, call.abi_encode()));
    }
    tries.push(("Permit2 transfer", PERMIT2, by_permit2(scene, payer, signer, me, all)));
    let channel = channel_between(&scene.world, payer, me);
    tries.push(("channel deposit", BATCH_SETTLEMENT, deposit(&scene.world, &channel, signer, all.max(1))));
    tries
}

fn by_permit2(scene: &Scene, owner: Address, signer: &PrivateKeySigner, me: Address, all: u128) -> Vec<u8> {
    let kind = "Witness witness)TokenPermissions(address token,uint256 amount)Witness(address to)";
    let token = scene.world.at.usdc;
    let permit = Permit {
        token,
        amount: pay::Usdc(all),
        spender: me,
        nonce: U256::from(scene.world.evm.now()),
        deadline: u64::MAX,
    };
    let digest = permit2::digest(chain::anvil::DEV_CHAIN_ID, kind, B256::ZERO, &permit);
    let permitted = ((token, U256::from(all)), permit.nonce, U256::from(u64::MAX));
    let arguments = (permitted, (me, U256::from(all)), owner, B256::ZERO, kind.to_owned(), sign(signer, digest))
        .abi_encode_params();
    [&Permit2::permitWitnessTransferFromCall::SELECTOR[..], &arguments].concat()
}
