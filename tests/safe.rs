//! A Safe on a development chain, for the tests of several crates: from its published bytecode, by its own factory.

use chain::Chain;
use chain::alloy::eips::BlockId;
use chain::alloy::primitives::{Address, Bytes, U256};
use chain::alloy::rpc::types::TransactionRequest;
use chain::alloy::signers::local::PrivateKeySigner;
use chain::alloy::sol;
use chain::alloy::sol_types::SolCall;
use chain::deploy::create;
use chain::sender::{Tx, send_once};

sol! {
    function setup(address[] owners, uint256 threshold, address to, bytes data, address fallbackHandler,
        address paymentToken, uint256 payment, address paymentReceiver) external;
    function createProxyWithNonce(address singleton, bytes initializer, uint256 salt) external returns (address);
}

/// The published bytecode of Safe 1.5.0.
fn published(path: &str) -> Bytes {
    let folder = "../../contracts/node_modules/@safe-global/safe-smart-account/build/artifacts/contracts";
    let file = format!("{}/{folder}/{path}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{file}: {e}; run `npm ci` in contracts/"));
    let artifact: serde_json::Value = serde_json::from_str(&text).unwrap();
    artifact["bytecode"].as_str().unwrap().parse().unwrap()
}

/// A Safe of these owners. `payer` has ETH.
pub async fn make(chain: &Chain, payer: &PrivateKeySigner, owners: Vec<Address>, threshold: u64) -> Address {
    let [singleton, handler, factory] = [
        ("Safe", published("Safe.sol/Safe")),
        ("handler", published("handler/CompatibilityFallbackHandler.sol/CompatibilityFallbackHandler")),
        ("factory", published("proxies/SafeProxyFactory.sol/SafeProxyFactory")),
    ]
    .map(|(name, code)| create(chain, payer, name, code));
    // One after the other: each takes the next number of one account.
    let (singleton, handler, factory) = (singleton.await.unwrap(), handler.await.unwrap(), factory.await.unwrap());
    let (none, threshold) = (Address::ZERO, U256::from(threshold));
    let setup = setupCall {
        owners,
        threshold,
        to: none,
        data: Bytes::new(),
        fallbackHandler: handler,
        paymentToken: none,
        payment: U256::ZERO,
        paymentReceiver: none,
    };
    let make = createProxyWithNonceCall { singleton, initializer: setup.abi_encode().into(), salt: U256::ZERO };
    let data: Bytes = make.abi_encode().into();
    let call = TransactionRequest::default().to(factory).input(data.clone().into());
    let answer: Bytes = chain.request("eth_call", (call, BlockId::latest())).await.unwrap();
    send_once(chain, payer, Tx::call(factory, data, "a Safe"), 1).await.unwrap();
    createProxyWithNonceCall::abi_decode_returns(&answer).unwrap()
}
