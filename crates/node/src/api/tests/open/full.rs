//! An engine that cannot take a request now: whoever pays for the call alone hears it before the payment is taken, or
//! has it back.

use super::engine::engine_that;
use super::*;
use crate::places::Place;
use infer::FailureKind;
use pay::book::AbortWhy;
use pay::book::channels::CallService;
use rustix::process::{Pid, Signal, kill_process};

const TEXT: &str = "Is there room?";

/// All places that the shop's engine has left.
fn all_places(shop: &Shop) -> Vec<Place> {
    let Engine { client, places, .. } = shop.shared.engine().unwrap();
    std::iter::from_fn(|| places.take(&client).ok()).collect()
}

/// This payment's settlement is mined.
async fn is_settled(shop: &Shop, payer: &PrivateKeySigner, nonce: [u8; 32], amount: Usdc) {
    let request = RequestId::of_payment(TransferMethod::Eip3009, &payer.address().0.0, &nonce);
    let settlement = Settlement::Paid { amount: amount.micro(), tx: B256::repeat_byte(9), block: 1, recorded: true };
    shop.cx.tell(Event::Settled { request, settlement }).await;
}

/// What became of the only call on a channel.
async fn first_call(shop: &Shop) -> CallService {
    let (reply, service) = tokio::sync::oneshot::channel();
    let look = move |node: &Node| {
        let mut calls = node.live.as_ref().unwrap().state.book.channels().calls();
        drop(reply.send(calls.next().unwrap().1.service.clone()));
    };
    shop.cx.tell(Event::Look(Box::new(look))).await;
    service.await.unwrap()
}

fn is_unavailable(said: &Said, code: &str, later: &str) {
    assert_eq!(
        (said.status.as_u16(), said.json()["error"]["code"].as_str(), said.later.as_deref()),
        (503, Some(code), Some(later)),
        "{}",
        said.body
    );
}

/// Nobody's payment is in the book, and none is sent.
async fn nothing_is_taken(shop: &Shop) {
    assert_eq!((shop.in_the_book().await, shop.shared.generations()), ((0, 0), 0));
    assert_eq!(shop.land.about_to_be_sent.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_full_engine_takes_no_payment_and_the_same_one_buys_when_there_is_a_place() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Arc::new(Shop::open(dir.path(), u64::MAX).await);
    let payer = customer("comes when it is full");
    let payment = json_of(&authorization(&shop, &payer, TEXT, [3; 32]).await);
    let by_permit2 = shop.offer(TEXT, UPTO, TransferMethod::Permit2).await;
    let by_permit2 = json_of(&permit2_client::sign(&payer, &by_permit2, NOW, [4; 32]).unwrap());
    let deposit = json_of(&deposit(&shop, &payer, TEXT).await);
    let mut held = all_places(&shop);
    assert_eq!(held.len(), 8 + 32, "side by side, and waiting");
    for payment in [&payment, &by_permit2, &deposit] {
        is_unavailable(&shop.pays(TEXT, payment).await, "engine_busy", "2");
    }
    nothing_is_taken(&shop).await;
    assert_eq!(shop.asks(TEXT, &[]).await.status, 402, "what it costs is told all the same");

    // A voucher is charged for what is delivered, and that is nothing.
    let (config, offer) = own_channel(&shop, &payer, TEXT).await;
    let domain = ChannelDomain::new(shop.cx.config.chain_id);
    let voucher = channel::pay(&payer, &domain, &config, &offer, offer.amount(), None).unwrap();
    is_unavailable(&shop.pays(TEXT, &json_of(&voucher)).await, "engine_busy", "2");
    while first_call(&shop).await == (CallService::Serving { tokens: 0, amount: Usdc::ZERO }) {
        tokio::task::yield_now().await;
    }
    assert_eq!(first_call(&shop).await, CallService::Aborted { why: AbortWhy::Engine });

    shop.land.hangs.store(true, Ordering::SeqCst);
    held.pop();
    let amount = Usdc(payment["accepted"]["amount"].as_str().unwrap().parse().unwrap());
    let buying = tokio::spawn({
        let (shop, payment) = (shop.clone(), payment.clone());
        async move { shop.pays(TEXT, &payment).await }
    });
    while shop.in_the_book().await.0 == 0 {
        tokio::task::yield_now().await;
    }
    is_settled(&shop, &payer, [3; 32], amount).await;
    let said = buying.await.unwrap();
    assert_eq!(said.status, 200, "{}", said.body);
    // What was bought is there for whoever asks again, however full it is.
    held.extend(all_places(&shop));
    assert_eq!(held.len(), 8 + 32, "an answer that is made keeps no place");
    assert_eq!(shop.pays(TEXT, &payment).await.body, said.body);
    Arc::into_inner(shop).expect("nobody else asks").close().await;
}

#[tokio::test]
async fn an_engine_that_is_started_again_and_a_fenced_node_take_no_payment() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::open(dir.path(), u64::MAX).await;
    let payment = json_of(&authorization(&shop, &customer("comes too early"), TEXT, [3; 32]).await);
    let Engine { client, places, .. } = shop.shared.engine().unwrap();
    // The next one does not come up before its time.
    std::fs::remove_file(dir.path().join("engine")).unwrap();
    kill_process(Pid::from_raw(i32::try_from(client.pid().unwrap()).unwrap()).unwrap(), Signal::KILL).unwrap();
    while client.pid().is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(places.take(&client).unwrap_err().code, "engine_restarting");
    is_unavailable(&shop.pays(TEXT, &payment).await, "unavailable", "1");
    nothing_is_taken(&shop).await;
    shop.close().await;

    let dir = tempfile::tempdir().unwrap();
    let shop = Shop::open_with(dir.path(), u64::MAX, |cx| cx.birth.timers.fence = 0).await;
    is_unavailable(&shop.pays(TEXT, &payment).await, "unavailable", "2");
    nothing_is_taken(&shop).await;
    shop.close().await;
}

/// The count is the node's own: an engine may be full of what it does not know of.
#[tokio::test]
async fn what_an_engine_refuses_after_all_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Arc::new(Shop::open(dir.path(), u64::MAX).await);
    let busy = |id, _| vec![FromEngine::Failed { id, kind: FailureKind::Busy, message: String::new() }];
    shop.shared.set_engine(engine_that(&dir.path().join("full"), busy).await);
    shop.land.hangs.store(true, Ordering::SeqCst);
    let payer = customer("comes just too late");
    let payment = json_of(&authorization(&shop, &payer, TEXT, [3; 32]).await);
    let amount = Usdc(payment["accepted"]["amount"].as_str().unwrap().parse().unwrap());
    let buying = tokio::spawn({
        let shop = shop.clone();
        async move { shop.pays(TEXT, &payment).await }
    });
    while shop.in_the_book().await.0 == 0 {
        tokio::task::yield_now().await;
    }
    is_settled(&shop, &payer, [3; 32], amount).await;
    is_unavailable(&buying.await.unwrap(), "engine_busy", "2");
    let (reply, owed) = tokio::sync::oneshot::channel();
    let look = move |node: &Node| {
        let book = &node.live.as_ref().unwrap().state.book;
        let _ = reply.send(book.owed().map(|(_, entry, amount)| (entry.service.clone(), amount)).collect::<Vec<_>>());
    };
    shop.cx.tell(Event::Look(Box::new(look))).await;
    let owed = owed.await.unwrap();
    let [(service, back)] = owed.as_slice() else { panic!("{owed:?}") };
    assert!(matches!(service, pay::book::Service::Aborted { why: AbortWhy::Engine, .. }), "{service:?}");
    assert_eq!(*back, amount);
    Arc::into_inner(shop).expect("nobody else asks").close().await;
}
