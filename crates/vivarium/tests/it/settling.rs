//! When and by whom `exact` payments are settled, in a world of real processes: after they were served and several at
//! once, across a `kill -9`, with payers who take their word back meanwhile; and by somebody else's facilitator, which
//! dies. What counts is what the chain says that was paid.

pub mod customers;

use crate::world::{self, World, get_json, get_text, program, project, signal};
use alloy::primitives::{Address, B256};
use alloy::signers::local::PrivateKeySigner;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use customers::{Bought, Paid, Said, Town, Wallet, amount_of, generations, pays, transaction_of, transactions};
use http::HeaderName;
use pay::book::AbortWhy;
use pay::receipt::refund::SignedRefund;
use pay::scheme::channel::BATCH_SETTLEMENT;
use pay::wire::{PAYMENT_SIGNATURE, encode_header};
use pay::{Reason, Usdc};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use vivarium::world::files::read_key;

/// A receipt is signed once what it says is on the disk, a moment after the answer's last byte.
const SIGNED: Duration = Duration::from_secs(30);
/// Most that may be open. The chain of a world has no price of ether, so that a batch leaves at half of it, or by time.
const SETTLE_AFTER: &str = "0.02";
const SETTLE_AFTER_UUSDC: u128 = 20_000;
/// A question whose answer is asked for once more.
const KEPT: &str = "Say it once.";
/// What the second agent begins with, micro-USDC.
const SECOND_SEED: u32 = 100_000_000;
/// What a million stored bytes cost at the second agent's.
const STORAGE: u64 = 100_000_000;
/// The longest answer that the Python client asks for.
const PYTHON_TOKENS: u32 = 16;
/// Above this a payment to the second agent must be under so many blocks: a stored answer costs more, another less.
const FINAL_ABOVE_UUSDC: u32 = 5_000;
const FINAL_BLOCKS: u32 = 4;

#[test]
fn payments_are_settled_after_they_were_served_and_by_anothers_facilitator() {
    let _turn = world::turn();
    let mut world = World::start(&["--settle-after", SETTLE_AFTER, "--no-restart"]);
    let agent = world.until("birth", |w| w.agent().filter(|agent| agent["selling"] == true));
    let town = Town::of(&world, &agent);
    let key_file = world.world()["customer"]["key_file"].as_str().expect("a key file").to_owned();
    let customer = read_key(Path::new(&key_file)).expect("a key");
    // Batches are the relay's. In a world of whole days it waits hours for the treasury's gas.
    world.until("the relay", |_| town.fund_relay(town.treasury));
    world.until("offers by its gas", |w| town.offer(&url_of(w), "Is there gas?", "permit2"));
    what_is_wrong_is_said(&world, &town, &customer);
    nothing_is_made_for_nothing(&world, &town);
    let (mut sales, kept) = served_first(&mut world, &town, &customer);
    killed_with_open_rows(&mut world, &town, &customer, &mut sales);
    asked_again_after_the_crash(&world, &town, &kept);
    let by_others = words_taken_back(&mut world, &town, &customer, &mut sales);

    // To the micro-USDC: what was sold, what the chain moved, and what the books say.
    let agent = world.agent().expect("a status");
    let treasury = agent["agent"].as_str().and_then(|a| a.parse().ok()).expect("an address");
    let payers = by_others.iter().copied().chain([customer.address()]);
    let moved: u128 = payers.flat_map(|payer| town.paid(payer, treasury)).map(|paid| paid.amount).sum();
    assert_eq!(moved, sales.sum);
    dust_is_refused(&world, &town, &customer);
    one_proxy_a_key(&world);
    ts_rs_rs_batch_settlement_streamed(&mut world, &town, &mut sales);
    py_rs_rs_exact(&mut world, &town, &mut sales);
    py_rs_rs_upto_streamed(&mut world, &town, &mut sales);
    upto_by_ask_and_proxy(&mut world, &town, &customer, &mut sales);
    balanced(&mut world, agent["url"].as_str().expect("a URL"), sales.sum);
    hung_up(&mut world, &town);
    anothers_facilitator(&mut world, &town, &customer);
}

/// What was sold so far.
struct Sales {
    /// Of the customer.
    count: usize,
    /// Of everybody who pays, micro-USDC.
    sum: u128,
    /// Payments that make a batch.
    rows: usize,
}

impl Sales {
    fn add(&mut self, answers: &[Value]) {
        self.count += answers.len();
        self.sum += answers.iter().map(amount_of).sum::<u128>();
    }
}

fn url_of(world: &World) -> String {
    world.world()["agent"]["url"].as_str().expect("a URL").to_owned()
}

fn balanced(world: &mut World, url: &str, sum: u128) {
    let sum = sum.to_string();
    let books = world.until("balanced books", |_| {
        let status = get_json(&format!("{url}/status"))?;
        (status["ledger_ok"] == true && status["earned_uusdc"] == sum.as_str()).then_some(status)
    });
    assert_eq!((&books["settled_uusdc"], &books["gifts_uusdc"]), (&json!(sum), &json!("0")), "{books}");
    let differences = ["ledger_short_uusdc", "book_difference_uusdc"].map(|name| &books[name]);
    assert_eq!(differences, [&json!("0"), &json!("0")], "{books}");
}

/// Whoever has never paid is settled before the answer leaves. From then on it is served first, and its payments wait for
/// each other.
fn served_first(world: &mut World, town: &Town, customer: &PrivateKeySigner) -> (Sales, Bought) {
    let url = url_of(world);
    let first = pays(&url, customer, 1);
    assert_ne!(transaction_of(&first[0]), B256::ZERO, "{first:?}");
    let price = amount_of(&first[0]);
    let rows = usize::try_from((SETTLE_AFTER_UUSDC / 2).div_ceil(price)).expect("few");
    assert!(rows >= 3, "a call costs {price}: no batch worth the name");
    let mut sales = Sales { count: 0, sum: 0, rows };
    sales.add(&first);
    let kept = town.buys(&url, customer, KEPT, None);
    assert_eq!(kept.status, 200, "{}", kept.answer);
    sales.add(std::slice::from_ref(&kept.answer));
    let later = pays(&url, customer, rows - 1);
    assert!(later.iter().all(|answer| answer["payment"].is_null()), "its head names no settlement: {later:?}");
    sales.add(&later);
    let paid = world.until("a batch", |_| Some(town.of_payer(customer)).filter(|paid| paid.len() == sales.count));
    assert!(transactions(&paid[1..]) < rows, "{rows} payments, each in a transaction of its own: {paid:?}");
    (sales, kept)
}

/// The same payment for the same question, after the node died: the same answer, and nothing is charged.
fn asked_again_after_the_crash(world: &World, town: &Town, kept: &Bought) {
    let begun = generations(&url_of(world));
    let (status, answer) = town.sends(&url_of(world), KEPT, &kept.header, None);
    assert_eq!((status, &answer), (200, &kept.answer));
    assert_eq!(generations(&url_of(world)), begun, "it was made once");
}

/// Whatever a payment's header holds, its sender hears why in the header and in the body, and never a 500.
fn what_is_wrong_is_said(world: &World, town: &Town, customer: &PrivateKeySigner) {
    const TEXT: &str = "What is wrong?";
    let url = url_of(world);
    let good = town.signed(&url, customer, TEXT);
    let changed = |pointer: &str, value: Value| {
        let mut payment = good.clone();
        *payment.pointer_mut(pointer).unwrap_or_else(|| panic!("{pointer} in {good}")) = value;
        encode_header(&payment)
    };
    let raw = |json: &str| BASE64_STANDARD.encode(json);
    let header = encode_header(&good);
    let twice = good.to_string().replacen('{', "{\"x402Version\":2,", 1);
    let elsewhere = json!("0x1111111111111111111111111111111111111111");
    let forged = json!(format!("0x{}1b", "11".repeat(64)));
    let amount = good["accepted"]["amount"].as_str().and_then(|amount| amount.parse::<u128>().ok()).expect("a number");
    let cases: Vec<(&str, String, Option<Reason>)> = vec![
        ("no base64", "%%%".to_owned(), Some(Reason::InvalidPayload)),
        ("half of it", header[..header.len() / 2].to_owned(), Some(Reason::InvalidPayload)),
        ("no JSON", raw("pay me"), Some(Reason::InvalidPayload)),
        ("a list", raw("[]"), Some(Reason::InvalidPayload)),
        ("one key twice", raw(&twice), Some(Reason::InvalidPayload)),
        ("too long", "A".repeat(17 << 10), Some(Reason::InvalidPayload)),
        ("version 1", changed("/x402Version", json!(1)), Some(Reason::InvalidX402Version)),
        ("a scheme of its own", changed("/accepted/scheme", json!("gratis")), Some(Reason::InvalidScheme)),
        ("another chain", changed("/accepted/network", json!("eip155:1")), None),
        ("another payee", changed("/accepted/payTo", elsewhere.clone()), None),
        ("another token", changed("/accepted/asset", elsewhere.clone()), None),
        ("a fraction", changed("/accepted/amount", json!("0.5")), Some(Reason::InvalidPayload)),
        ("a number for a text", changed("/accepted/amount", json!(1)), None),
        ("less than was signed", changed("/accepted/amount", json!((amount - 1).to_string())), None),
        ("another's signature", changed("/payload/signature", forged), None),
        ("a broken signature", changed("/payload/signature", json!("0x12")), None),
        ("another payer", changed("/payload/authorization/from", elsewhere), None),
        ("a nonce of three bytes", changed("/payload/authorization/nonce", json!("0x010203")), None),
        ("no payload", changed("/payload", json!({})), Some(Reason::InvalidPayload)),
    ];
    for (what, payment, reason) in cases {
        let said = town.sends_with(&url, TEXT, &[(PAYMENT_SIGNATURE, payment)]);
        is_refused(what, &said, reason);
    }
    let both = [(PAYMENT_SIGNATURE, header.clone()), (PAYMENT_SIGNATURE, header.clone())];
    is_refused("two payments", &town.sends_with(&url, TEXT, &both), Some(Reason::InvalidPayload));
    let old = [(HeaderName::from_static("x-payment"), header)];
    is_refused("an old client", &town.sends_with(&url, TEXT, &old), Some(Reason::InvalidX402Version));
    assert!(town.of_payer(customer).is_empty(), "nothing of it was taken");
}

fn is_refused(what: &str, said: &Said, reason: Option<Reason>) {
    let code = said.body["error"]["code"].as_str().unwrap_or_default();
    assert!((400..500).contains(&said.status), "{what}: {} {}", said.status, said.body);
    assert_eq!(said.offered.as_deref(), Some(code), "{what}: the header and the body say the same");
    let named = Reason::ALL.iter().find(|reason| reason.as_str() == code);
    assert!(named.is_some_and(|named| reason.is_none_or(|reason| reason == *named)), "{what}: {code}, not {reason:?}");
}

/// A voucher for a channel that does not exist is signed for free, so no engine works for it.
fn nothing_is_made_for_nothing(world: &World, town: &Town) {
    const TEXT: &str = "Work for nothing.";
    let url = url_of(world);
    let begun = generations(&url);
    for said in town.pay_with_nothing(&url, TEXT, 64) {
        is_refused("no channel", &said, None);
    }
    assert_eq!(generations(&url), begun, "the engine worked for nothing");
}

/// One channel, 10,007 calls with `VIVARIUM_DEEP=1`, else 47: what was charged, the signed receipts, the node's ledger and
/// the money that the chain moved are one sum, and no receipt is missing.
fn ts_rs_rs_batch_settlement_streamed(world: &mut World, town: &Town, sales: &mut Sales) {
    let (calls, url) = (if std::env::var_os("VIVARIUM_DEEP").is_some() { 10_007 } else { 47 }, url_of(world));
    let paid_out = || town.paid(BATCH_SETTLEMENT, town.treasury).iter().map(|paid| paid.amount).sum::<u128>();
    let before = paid_out();
    let flags = ["--max-tokens=2", "--refund"];
    let out = world::client(&world.world(), "stream", calls, "batch-settlement", &flags);
    let text = String::from_utf8_lossy(&out.stdout);
    let end = text.lines().last().unwrap_or_default();
    assert!(out.status.success(), "{end} {}", String::from_utf8_lossy(&out.stderr));
    let lines =
        text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e} in {line}")));
    let (mut charged, mut receipts, mut answers) = (0, Vec::new(), 0);
    for line in lines.filter(|line| line["status"] == 200) {
        let stream = line["text"].as_str().expect("a stream");
        let last = stream.split("\"x402\":").nth(1).unwrap_or_else(|| panic!("no receipt in {stream}"));
        let mut last = serde_json::Deserializer::from_str(last).into_iter::<Value>();
        let sold = last.next().expect("an object").expect("JSON");
        let number = |value: &Value| value.as_str().and_then(|n| n.parse::<u128>().ok()).expect("a number");
        charged += number(&sold["charged"]);
        let receipt = format!("{url}/receipts/{}", sold["request"].as_str().expect("a request"));
        let receipt = world.within(SIGNED, "its receipt", |_| get_json(&receipt));
        receipts.push(["channel_charged_uusdc", "amount_uusdc"].map(|name| number(&receipt[name])));
        answers += 1;
    }
    let amounts: u128 = receipts.iter().map(|[_, amount]| amount).sum();
    assert_eq!((answers, charged), (calls, amounts), "the answers and their receipts");
    // One channel: each begins where the one before ends, the last says it all.
    receipts.sort_unstable();
    let mut until_now = 0;
    for [in_all, amount] in receipts {
        assert_eq!(in_all - amount, until_now, "a receipt is missing");
        until_now = in_all;
    }
    assert_eq!(until_now, charged, "the channel's last receipt says all that it was charged");
    // The refund at the end claims first.
    assert_eq!(paid_out() - before, charged, "the receipts and the chain");
    sales.sum += charged;
}

/// Plain and streamed; from the second call on settled after it was served.
fn py_rs_rs_exact(world: &mut World, town: &Town, sales: &mut Sales) {
    let payer = town.stranger("writes Python");
    for mode in ["plain", "stream"] {
        python(world, &payer, mode, "exact");
    }
    // Known payers are settled after they were served.
    let paid = world.until("Python's payments", |_| Some(town.of_payer(&payer)).filter(|paid| paid.len() == 4));
    sales.sum += paid.iter().map(|paid| paid.amount).sum::<u128>();
}

/// Streams, each settled before its last byte; a token without EIP-2612, so Permit2 is allowed once.
fn py_rs_rs_upto_streamed(world: &mut World, town: &Town, sales: &mut Sales) {
    let payer = town.stranger("streams by upto");
    town.lets_permit2_spend(&payer);
    let ceiling = town.ceiling(&url_of(world), "question 0", PYTHON_TOKENS);
    let mut charged = Vec::new();
    for line in python(world, &payer, "stream", "upto") {
        charged.push(line["charged"].as_str().and_then(|n| n.parse::<u128>().ok()).unwrap_or_else(|| panic!("{line}")));
    }
    let paid: Vec<u128> = town.of_payer(&payer).iter().map(|paid| paid.amount).collect();
    assert_eq!(paid, charged, "the ends of the streams and the chain");
    assert!(paid.iter().all(|amount| *amount <= ceiling), "{paid:?} of {ceiling} each");
    sales.sum += paid.iter().sum::<u128>();
}

/// The official Python client, two calls; the lines it printed.
fn python(world: &World, payer: &PrivateKeySigner, mode: &str, scheme: &str) -> Vec<Value> {
    let python = project().join(".vivarium/python/bin/python");
    assert!(python.is_file(), ".vivarium/python is missing: `cargo xtask setup` makes it");
    let rpc = world.world()["rpc_url"].as_str().expect("a URL").to_owned();
    let out = Command::new(&python)
        .args(["schemes.py", &url_of(world), &payer.to_bytes().to_string(), "2", mode, scheme, &rpc])
        .current_dir(project().join("tests/clients"))
        .output()
        .expect("python starts");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text} {}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(text.lines().count(), 2, "{text}");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"))).collect()
}

/// `vivarium ask` and `vivarium proxy` by `upto` and nothing else: what they say, the receipt and the chain are one sum,
/// below what was permitted.
fn upto_by_ask_and_proxy(world: &mut World, town: &Town, customer: &PrivateKeySigner, sales: &mut Sales) {
    town.lets_permit2_spend(customer);
    let url = url_of(world);
    // So many that the longest answer costs several times the least price of a call.
    let price = &get_json(&format!("{url}/status")).expect("a status")["price"];
    let of = |name: &str| price[name].as_str().and_then(|n| n.parse::<u64>().ok()).expect("a number");
    let tokens = (4_000_000 * of("call_uusdc")).div_ceil(of("mtok_completion_uusdc"));
    let tokens = u32::try_from(tokens).expect("a number of tokens");
    let mut moved = |world: &mut World, said: u128, request: &Value, question: &str| {
        let receipt = format!("{url}/receipts/{}", request.as_str().expect("a request"));
        let receipt = world.within(SIGNED, "its receipt", |_| get_json(&receipt));
        let transaction: B256 = receipt["transaction"].as_str().and_then(|tx| tx.parse().ok()).expect("a settlement");
        let paid = town.of_payer(customer);
        let on_chain = paid.iter().find(|paid| paid.tx == transaction).expect("a transfer to the treasury").amount;
        assert_eq!((said, &receipt["amount_uusdc"]), (on_chain, &json!(on_chain.to_string())), "{receipt}");
        let ceiling = town.ceiling(&url, question, tokens);
        assert!(on_chain < ceiling, "{on_chain} of {ceiling}: {receipt}");
        sales.sum += on_chain;
    };
    let question = "Say hello.";
    let told = world.ask(&["--scheme", "upto", "--max-tokens", &tokens.to_string(), question]).expect("an answer");
    assert_eq!(told["scheme"], "upto", "{told}");
    let spent = told["spent_uusdc"].as_str().and_then(|n| n.parse().ok()).expect("a number");
    moved(world, spent, &told["request_id"], question);

    let (mut proxy, base_url) = world::proxy(&world.data_dir(), &["--budget", "1/day", "--scheme", "upto"]);
    let question = "Hello.";
    let said = town.asks_free(base_url.strip_suffix("/v1").expect("its form"), question, tokens);
    assert_eq!((said.status, &said.body["payment"]["success"]), (200, &json!(true)), "{}", said.body);
    let spent = said.body["payment"]["amount"].as_str().and_then(|n| n.parse().ok()).expect("a number");
    moved(world, spent, &said.body["x402"]["request"], question);
    signal(proxy.id(), "TERM");
    proxy.wait().expect("it ends");
}

/// Whoever is gone before its answer has its money back, without asking.
fn hung_up(world: &mut World, town: &Town) {
    let stranger = town.stranger("hangs up");
    let request = town.hangs_up(&url_of(world), &stranger, "Tell me a long story.").expect("a node");
    let back = world.until("its money back", |_| {
        let back = town.paid(town.treasury, stranger.address());
        (!back.is_empty()).then_some(back)
    });
    let paid = town.of_payer(&stranger);
    assert_eq!((paid.len(), back.len(), paid[0].amount), (1, 1, back[0].amount));
    // And the operator's word for it, which holds off line.
    let said = get_text(&format!("{}/refunds/{request}", url_of(world))).expect("a statement");
    let signed = SignedRefund::from_json(&said).expect("a refund");
    let operator = world.agent().expect("a status")["operator"].as_str().and_then(|a| a.parse().ok());
    assert_eq!(signed.signer().ok(), operator, "{said}");
    let note = &signed.note;
    assert_eq!((note.payer, note.amount, note.reason), (stranger.address(), Usdc(paid[0].amount), AbortWhy::HungUp));
    let file = world.dir.path().join("refund.json");
    std::fs::write(&file, &said).expect("a file");
    let rpc = world.world()["rpc_url"].as_str().expect("a URL").to_owned();
    let file = file.to_str().expect("UTF-8");
    let verify = || Command::new(program()).args(["receipt", "verify", file, "--rpc", &rpc]).output().expect("it runs");
    let verified = verify();
    let text = String::from_utf8_lossy(&verified.stdout);
    assert!(verified.status.success() && text.contains("nobody was there any more"), "{text}");
    std::fs::write(file, said.replace("hung_up", "host_crashed")).expect("a file");
    assert!(!verify().status.success(), "an altered reason is not signed");
}

/// The node dies while rows are open, which only its own disk knows. None is lost and none doubled.
fn killed_with_open_rows(world: &mut World, town: &Town, customer: &PrivateKeySigner, sales: &mut Sales) {
    loop {
        let agent = world.agent().expect("a status");
        let lease = agent["lease"]["id"].as_u64().expect("a lease");
        let pid = world.tenant_pid(lease).expect("the node");
        let settled = town.of_payer(customer).len();
        sales.add(&pays(&url_of(world), customer, sales.rows - 1));
        signal(pid, "KILL");
        let were_open = town.of_payer(customer).len() == settled;
        world.until("the node again", |w| {
            let agent = w.agent()?;
            (agent["selling"] == true && w.tenant_pid(lease)? != pid).then_some(())
        });
        // On a slow machine they may have left by time: once more, then.
        if were_open {
            break;
        }
    }
    let before = transactions(&town.of_payer(customer));
    // One more makes them worth a transaction, as it would have before the crash.
    sales.add(&pays(&url_of(world), customer, 1));
    let paid = world.until("what was open", |_| Some(town.of_payer(customer)).filter(|paid| paid.len() >= sales.count));
    assert_eq!(paid.len(), sales.count, "nothing is lost and nothing doubled");
    assert!(transactions(&paid) - before < sales.rows, "what the crash left open went together: {paid:?}");
}

/// Between serving and settling one payer cancels, one payment is brought in by somebody else, and one payer is frozen:
/// each is only its own trouble. Who paid though nobody expected it.
fn words_taken_back(world: &mut World, town: &Town, customer: &PrivateKeySigner, sales: &mut Sales) -> Vec<Address> {
    let url = url_of(world);
    let [cancels, overtaken, frozen] = ["cancels", "is overtaken", "is frozen"].map(|name| town.stranger(name));
    for payer in [&cancels, &overtaken, &frozen] {
        let first = town.buys(&url, payer, "Say hello.", None);
        assert_ne!(transaction_of(&first.answer), B256::ZERO, "settled before its first byte");
        sales.sum += amount_of(&first.answer);
    }
    let count = || [&cancels, &overtaken, &frozen].map(|payer| town.of_payer(payer).len());
    let mut tries = 0;
    let (ours, (theirs, brought_in), nobodys) = loop {
        tries += 1;
        assert!(tries < 6, "this machine is too slow to come in between");
        let before = count();
        let of = |payer| town.buys(&url, payer, &format!("Say {tries}."), None);
        let bought = [of(&cancels), of(&overtaken), of(&frozen)];
        for served in &bought {
            assert_eq!((served.status, &served.answer["payment"]), (200, &Value::Null), "served first");
        }
        let [ours, theirs, nobodys] = bought;
        let (cancelled, overtook) = (town.cancel(&cancels, &ours), town.bring_in(&theirs));
        town.freeze(frozen.address(), true);
        if let (true, Some(tx), true) = (cancelled, overtook, count()[2] == before[2]) {
            break (ours, (theirs, tx), nobodys);
        }
        // Some of them were settled by time before we came.
        town.freeze(frozen.address(), false);
        world.until("all is settled", |w| (w.agent()?["requests"]["open"] == 0).then_some(()));
        for (before, (after, bought)) in before.iter().zip(count().iter().zip([&ours, &theirs, &nobodys])) {
            sales.sum += if after > before { amount_of(&bought.answer) } else { 0 };
        }
    };
    // Two more for the batch, and what one payment, or one name of a request, cannot buy twice.
    let once = town.buys(&url, customer, "What is a lease?", None);
    let again = town.sends(&url, "What is a voucher?", &once.header, None);
    assert_eq!((again.0, &again.1["error"]["code"]), (409, &json!(Reason::PaymentConflict.as_str())), "{}", again.1);
    let named = town.buys(&url, customer, "What is a channel?", Some("a name"));
    let renamed = town.buys(&url, customer, "What is a receipt?", Some("a name"));
    assert_eq!((renamed.status, &renamed.answer["error"]["code"]), (409, &json!(Reason::PaymentConflict.as_str())));
    for sold in [&once, &named] {
        assert_eq!(sold.status, 200, "{}", sold.answer);
        sales.add(std::slice::from_ref(&sold.answer));
    }
    sales.add(&pays(&url, customer, sales.rows.saturating_sub(5)));
    world.until("all is settled", |w| (w.agent()?["requests"]["open"] == 0).then_some(()));

    assert_eq!(town.of_payer(customer).len(), sales.count, "two good rows between three bad ones");
    let paid = town.of_payer(&overtaken);
    assert_eq!(paid.last().map(|paid| paid.tx), Some(brought_in), "paid by another's transaction");
    sales.sum += amount_of(&theirs.answer);
    let receipt = world.until("its receipt", |_| get_json(&format!("{url}/receipts/{}", theirs.request())));
    assert_eq!(receipt["transaction"].as_str().and_then(|tx| tx.parse().ok()), Some(brought_in), "{receipt}");
    for unpaid in [&ours, &nobodys] {
        assert_eq!(get_json(&format!("{url}/receipts/{}", unpaid.request())), None, "no receipt for what nobody paid");
    }
    town.freeze(frozen.address(), false);
    [cancels, overtaken, frozen].map(|payer| payer.address()).to_vec()
}

/// A channel that would hold less than its own gas is not opened.
fn dust_is_refused(world: &World, town: &Town, customer: &PrivateKeySigner) {
    let (status, answer) = town.opens_with(&url_of(world), customer, Usdc(9_999));
    assert_eq!((status, &answer["error"]["code"]), (402, &json!(Reason::DepositBelowMin.as_str())), "{answer}");
}

/// Whoever asks for the channels' money while a proxy pays from them hears what is in the way and what to do.
fn one_proxy_a_key(world: &World) {
    let (mut proxy, _) = world::proxy(&world.data_dir(), &["--budget", "1/day"]);
    let refused = |flags: &[&str]| {
        let (worked, said) = world.run(&[&["proxy"], flags].concat());
        assert!(!worked && said.trim_end().lines().count() == 1, "{said}");
        said
    };
    let said = refused(&["--refund"]);
    for words in ["nothing was asked back", "is running", "End it with Ctrl-C", "say this again"] {
        assert!(said.contains(words), "{said}");
    }
    let said = refused(&["--listen", "127.0.0.1:0", "--budget", "1/day"]);
    assert!(said.contains("is running already") && said.contains("another --key"), "{said}");
    signal(proxy.id(), "TERM");
    proxy.wait().expect("it ends");
}

/// A second agent, whose manifest names somebody else's facilitator and a factory that makes payers.
fn anothers_facilitator(world: &mut World, town: &Town, customer: &PrivateKeySigner) {
    let (mut facilitator, its_url, its_key) = town.facilitator(world.dir.path());
    let factory = town.deploy("TestWalletFactory");
    let text = std::fs::read_to_string(world.data_dir().join("manifest.toml")).expect("the world's own manifest");
    let mut manifest: toml::Table = text.parse().expect("TOML");
    let mut payments = toml::Table::new();
    payments.insert("facilitator_url".to_owned(), its_url.clone().into());
    payments.insert("factories".to_owned(), vec![factory.to_string()].into());
    payments.insert("storage_uusdc_per_mbyte".to_owned(), STORAGE.to_string().into());
    payments.insert("settle_after_uusdc".to_owned(), SETTLE_AFTER_UUSDC.to_string().into());
    payments.insert("final_above_uusdc".to_owned(), FINAL_ABOVE_UUSDC.to_string().into());
    payments.insert("final_blocks".to_owned(), FINAL_BLOCKS.into());
    manifest.insert("payments".to_owned(), payments.into());
    let file = world.dir.path().join("second.toml");
    std::fs::write(&file, manifest.to_string()).expect("a file");
    let creator = read_key(&world.data_dir().join("keys/creator.development-key")).expect("a key").address();
    town.mint(creator, SECOND_SEED.into());
    let seed = (SECOND_SEED / 1_000_000).to_string();
    let (born, said) = world.run(&["birth", file.to_str().expect("UTF-8"), "--yes", "--json", "--seed-usdc", &seed]);
    assert!(born, "{said}");
    let told: Value = said.lines().find_map(|line| serde_json::from_str(line).ok()).expect("a JSON line");
    let treasury: Address = told["treasury"].as_str().and_then(|a| a.parse().ok()).expect("an address");
    let url = town.place_of(told["lease"].as_u64().expect("a lease"));
    let selling = |url: &str| get_json(&format!("{url}/status")).filter(|status| status["selling"] == true);
    world.until("the second agent sells", |_| selling(&url));
    town.buy_credit(&its_url, its_key, treasury, customer);

    // It settles for a payer who waits, and for one that is served first.
    let first = town.stranger("a first stranger");
    let waited = pays(&url, &first, 1);
    assert_eq!(town.sender_of(transaction_of(&waited[0])), its_key, "{waited:?}");
    let later = pays(&url, &first, 1);
    assert!(later[0]["payment"].is_null(), "{later:?}");
    let paid =
        world.until("a settlement by it", |_| Some(town.paid(first.address(), treasury)).filter(|p| p.len() == 2));
    assert_eq!(town.sender_of(paid[1].tx), its_key);

    // What is stored is a class of the price: five bytes asked, and sixteen for each of four tokens. A call has a least
    // price, which the tokens alone may not reach.
    let ((plain, told), (stored, told_too)) = (town.response_offer(&url, false), town.response_offer(&url, true));
    let bytes = u128::from(STORAGE) * (5 + 4 * 16) / 1_000_000;
    assert!((bytes - 1_000..=bytes).contains(&(stored - plain)), "{plain} and {stored}");
    assert!(
        !told.contains("stored") && told_too.ends_with("a million bytes that are stored 100.000000 USDC"),
        "{told_too}"
    );
    let price = &get_json(&format!("{url}/status")).expect("a status")["price"];
    assert_eq!(price["mbyte_stored_uusdc"], STORAGE.to_string().as_str(), "{price}");

    // It dies: the agent's own relay settles, and nobody notices.
    town.end(&mut facilitator);
    let second = town.stranger("a second stranger");
    let helped = pays(&url, &second, 1);
    let relay = town.sender_of(transaction_of(&helped[0]));
    assert_ne!(relay, its_key, "{helped:?}");

    // A large payment waits until its settlement is deep enough, though its payer is known and there is room to serve
    // it first.
    let (large, block, head) = town.buys_stored(&url, &second);
    assert!(large > FINAL_ABOVE_UUSDC.into() && amount_of(&helped[0]) <= FINAL_ABOVE_UUSDC.into(), "{large}");
    assert!(head + 1 >= block + u64::from(FINAL_BLOCKS), "settled in block {block}, answered in block {head}");

    // A payer by Permit2 that is no contract yet (ERC-6492): made by the factory that the manifest names, by no other, and
    // never by the operator's key.
    world.until("the second relay", |_| town.fund_relay(treasury));
    let wallet = Wallet::planned(town, factory);
    let offer = world.until("an offer by Permit2", |_| town.offer(&url, "Say it by Permit2.", "permit2"));
    let elsewhere = Wallet::planned(town, town.deploy("TestWalletFactory"));
    let refused = town.sends(&url, "Say it by Permit2.", &elsewhere.permit2(town, &offer).to_header(), None);
    assert_eq!((refused.0, &refused.1["error"]["code"]), (402, &json!("eip6492_factory_not_allowed")), "{}", refused.1);
    let made = town.sends(&url, "Say it by Permit2.", &wallet.permit2(town, &offer).to_header(), None);
    assert_eq!(made.0, 200, "{}", made.1);
    let by_wallet = town.paid(wallet.address, treasury);
    assert_eq!(by_wallet.iter().map(|paid| paid.amount).collect::<Vec<_>>(), [offer.amount().micro()]);
    let status = get_json(&format!("{url}/status")).expect("a status");
    let operator: Address = status["operator"].as_str().and_then(|a| a.parse().ok()).expect("an address");
    assert_ne!(town.sender_of(by_wallet[0].tx), operator, "the operator's key runs no stranger's code");
    assert!(town.has_code(wallet.address) && !town.has_code(elsewhere.address));

    let payers = [first.address(), second.address(), wallet.address];
    let moved: Vec<Paid> = payers.iter().flat_map(|payer| town.paid(*payer, treasury)).collect();
    let sold: u128 = waited.iter().chain(&later).chain(&helped).map(amount_of).sum();
    let sold = sold + offer.amount().micro() + large;
    assert_eq!(moved.iter().map(|paid| paid.amount).sum::<u128>(), sold);
    balanced(world, &url, sold);
}
