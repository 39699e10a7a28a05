//! How payers sign for a token, by what the token says.

use crate::world::World;
use chain::alloy::primitives::{Address, B256, U256, hex, keccak256};
use chain::{Kind, Signing, Tx};

/// A development token, with another text in the place of one of the same length.
async fn token(world: &World, artifact: &str, (of, by): (&str, &str)) -> Address {
    with_code(world, artifact, (&halved(of), &halved(by))).await
}

/// The text as solc pushes it: as a number without the zero bit at its end, which a shift brings back.
fn halved(text: &str) -> String {
    let number = text.bytes().fold(0u128, |number, byte| number << 8 | u128::from(byte));
    assert_eq!(number & 1, 0, "{text} ends in another bit");
    format!("{:x}", number >> 1)
}

async fn with_code(world: &World, artifact: &str, (of, by): (&str, &str)) -> Address {
    let artifact: serde_json::Value = serde_json::from_str(artifact).expect("JSON");
    let code = artifact["bytecode"].as_str().expect("bytecode");
    assert!(of.len() == by.len() && code.contains(of), "{of} is in the code");
    let data = code.replace(of, by).parse().expect("hexadecimal");
    let made = Tx { to: None, data, value: 0, gas: None, label: "token" };
    let done = world.creator.send_and_wait(made).await.expect("deploys");
    world.chain.receipt(done.tx_hash).await.expect("answers").expect("mined").contract_address.expect("made")
}

const USDC: &str = include_str!("../../../../contracts/abi/TestUSDC.json");
const PERMITS: &str = include_str!("../../../../contracts/abi/TestPermitToken.json");

#[tokio::test]
async fn a_token_says_how_it_is_signed_for() {
    let world = World::instant().await;
    let signing = async |at: Address| world.chain.usdc(at).signing().await;
    let said = |name: &str, version: &str, has_eip3009, has_permit| {
        Ok(Signing { name: name.to_owned(), version: version.to_owned(), has_eip3009, has_permit })
    };
    let kind = |found: Result<Signing, chain::Error>| found.map_err(|e| e.kind);
    assert_eq!(kind(signing(world.addresses.usdc).await), said("USD Coin", "2", true, false));
    // What USDC is called elsewhere.
    let other = token(&world, USDC, ("USD Coin", "USDC.alt")).await;
    assert_eq!(kind(signing(other).await), said("USDC.alt", "2", true, false));
    let permits = token(&world, PERMITS, ("Test Dollar", "Test Euro..")).await;
    assert_eq!(kind(signing(permits).await), said("Test Euro..", "1", false, true));
    // The same without `version()`: it answers to another name.
    let version = hex::encode(&keccak256("version()")[..4]);
    let silent = with_code(&world, PERMITS, (&version, "00000001")).await;
    assert_eq!(kind(signing(silent).await), said("Test Dollar", "1", false, true));
    // A token that names another domain than it checks: every signature would fail.
    let slot = U256::from(3);
    // The word in which a short text is stored: its bytes, and twice their number.
    let mut lie = B256::right_padding_from(b"Another Coin");
    lie[31] = 2 * 12;
    world.chain.request::<_, bool>("anvil_setStorageAt", (other, slot, lie)).await.expect("a development chain");
    let lying = signing(other).await.expect_err("nobody could sign for it");
    assert_eq!(lying.kind, Kind::Missing);
    assert!(lying.to_string().contains("another EIP-712 domain than {name \"Another Coin\", version \"2\""), "{lying}");

    let market = signing(world.addresses.market).await.expect_err("no token");
    assert_eq!(market.kind, Kind::Missing, "{market}");
}
