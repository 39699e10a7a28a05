//! Payments by `exact` that a STAND-IN for another's facilitator is asked to settle: it tells of them twice, late, or never.
//! Each is income once, by the transaction that the chain shows.

use super::*;
use pay::book::Totals;
use std::time::Duration;
use tokio::sync::Notify;

const TEXT: &str = "Who settles it?";
const NONCE: [u8; 32] = [3; 32];
/// What the chain shows, and what somebody else tells of.
const THEIRS: B256 = B256::repeat_byte(0x7d);
const OTHER: B256 = B256::repeat_byte(0x7e);
/// To the other's answer, where none comes.
const SOON: Duration = Duration::from_millis(300);
/// The same where one comes.
const PATIENT: Duration = Duration::from_secs(30);

/// When the other sends what it was asked to, and when it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    Prompt,
    /// At once; its answer comes when the customer has its own.
    AnswersLate,
    /// Just before the relay does, which nobody has told of it.
    SettlesLate,
    Never,
}

/// A shop that has it settle, what it was asked, and the word that lets its late answer go.
async fn shop(dir: &Path, manner: Manner) -> (Arc<Shop>, Arc<Mutex<Vec<Value>>>, Arc<Notify>) {
    let (heard, answers): (Arc<Mutex<Vec<Value>>>, Arc<Notify>) = Default::default();
    let land = Arc::new(Mutex::new(None::<Arc<Land>>));
    let (asked, may_answer, of) = (heard.clone(), answers.clone(), land.clone());
    let settle = move |Json(body): Json<Value>| {
        let (asked, may_answer, of) = (asked.clone(), may_answer.clone(), of.clone());
        async move {
            let text = |path: &str| body.pointer(path).and_then(Value::as_str).unwrap().to_owned();
            let signed = "/paymentPayload/payload/authorization";
            let taken = Taken {
                tx: THEIRS,
                payer: text(&format!("{signed}/from")).parse().unwrap(),
                token: text("/paymentRequirements/asset").parse().unwrap(),
                amount: Usdc(text(&format!("{signed}/value")).parse().unwrap()),
            };
            let nonce = text(&format!("{signed}/nonce")).parse().unwrap();
            let land = of.lock().unwrap().clone().unwrap();
            match manner {
                Manner::Prompt | Manner::AnswersLate => drop(land.taken.lock().unwrap().insert(nonce, taken)),
                Manner::SettlesLate => *land.taken_meanwhile.lock().unwrap() = Some((nonce, taken)),
                Manner::Never => {}
            }
            asked.lock().unwrap().push(body);
            if manner != Manner::Prompt {
                may_answer.notified().await;
            }
            Json(json!({ "success": true, "transaction": THEIRS, "network": "eip155:31337" }))
        }
    };
    let url = served(Router::new().route("/settle", post(settle))).await;
    let patience = if manner == Manner::Prompt { PATIENT } else { SOON };
    let shop = Shop::open_with(dir, u64::MAX, |cx| {
        cx.facilitator = Some(Remote::new(&url, &net::Client::new()).with_patience(patience));
    })
    .await;
    *land.lock().unwrap() = Some(shop.land.clone());
    (Arc::new(shop), heard, answers)
}

/// Pays, and is told of again by another transaction: what it paid counts once, under the one that came first.
async fn counts_once(manner: Manner) {
    let dir = tempfile::tempdir().unwrap();
    let (shop, heard, answers) = shop(dir.path(), manner).await;
    let payer = customer("is settled by another");
    let payment = json_of(&authorization(&shop, &payer, TEXT, NONCE).await);
    let amount: u128 = payment["accepted"]["amount"].as_str().unwrap().parse().unwrap();
    let request = RequestId::of_payment(TransferMethod::Eip3009, &payer.address().0.0, &NONCE);
    let told = async |tx: B256| {
        let settlement = Settlement::Paid { amount, tx, block: 1, recorded: false };
        shop.cx.tell(Event::Settled { request, settlement }).await;
    };
    let buying = tokio::spawn({
        let (shop, payment) = (shop.clone(), payment.clone());
        async move { shop.pays(TEXT, &payment).await }
    });
    let by_relay = || shop.land.about_to_be_sent.load(Ordering::SeqCst);
    if manner == Manner::Never {
        while by_relay() == 0 {
            tokio::task::yield_now().await;
        }
        // STAND-IN for the relay's transaction, which this chain takes from nobody.
        told(THEIRS).await;
    }
    let said = buying.await.unwrap();
    assert_eq!(said.status, 200, "{}", said.body);
    let by_another = matches!(manner, Manner::Prompt | Manner::AnswersLate);
    assert_eq!(by_relay(), u32::from(!by_another), "the relay sends what is not settled, and nothing else");
    answers.notify_waiters();

    told(OTHER).await;
    let (totals, posted) = ledger(&shop).await;
    let wanted = Totals { settled: Usdc(amount), earned: Usdc(amount), ..Totals::default() };
    assert_eq!((totals, posted), (wanted, (1, Usdc(amount))), "income once");
    let receipt = shop.receipt(&said).await.receipt;
    assert_eq!(
        (receipt.amount, receipt.paid_by),
        (Usdc(amount), PaidBy::Authorization { nonce: NONCE, transaction: THEIRS.0 })
    );
    // Asked for again, it is the same answer, and nobody is asked to settle it.
    let again = shop.pays(TEXT, &payment).await;
    assert_eq!((again.status, &again.body), (said.status, &said.body));
    assert_eq!((heard.lock().unwrap().len(), shop.shared.generations()), (1, 1));
    Arc::into_inner(shop).expect("nobody else asks").close().await;
}

/// The book's sums, and what the ledger is yet to hear: payments and their sum.
async fn ledger(shop: &Shop) -> (Totals, (u64, Usdc)) {
    let (reply, sums) = tokio::sync::oneshot::channel();
    let look = move |node: &Node| {
        let state = &node.live.as_ref().unwrap().state;
        let unposted = state.unposted();
        let _ = reply.send((state.book.totals(), (unposted.count, unposted.sum)));
    };
    shop.cx.tell(Event::Look(Box::new(look))).await;
    sums.await.unwrap()
}

#[tokio::test]
async fn a_settlement_that_is_told_of_twice_with_two_transactions_is_income_once() {
    counts_once(Manner::Prompt).await;
}

#[tokio::test]
async fn a_settlement_whose_word_comes_late_is_found_on_the_chain() {
    counts_once(Manner::AnswersLate).await;
}

#[tokio::test]
async fn a_settlement_that_comes_late_is_not_made_again() {
    counts_once(Manner::SettlesLate).await;
}

#[tokio::test]
async fn a_settlement_that_never_comes_is_the_relays() {
    counts_once(Manner::Never).await;
}
