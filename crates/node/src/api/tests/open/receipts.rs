//! A receipt that is asked for before it is signed.

use super::*;

const TEXT: &str = "What is a receipt?";

async fn asked(shop: &Shop, request: RequestId) -> (u16, Value) {
    let url = format!("{}/receipts/{request}", shop.url);
    let said = net::Client::new().send(Method::GET, &url, HeaderMap::new(), Default::default()).await.unwrap();
    (said.status.as_u16(), said.json().await.unwrap())
}

/// How many ask for a receipt that is on its way.
async fn waiting(shop: &Shop) -> usize {
    let (reply, count) = tokio::sync::oneshot::channel();
    let look = move |node: &Node| reply.send(node.receipt_waiters.values().map(Vec::len).sum()).unwrap();
    shop.cx.tell(Event::Look(Box::new(look))).await;
    count.await.unwrap()
}

/// Of a call whose payment is not settled yet: it is waited for, and one that nobody knows is not, nor one of a call
/// that is given up.
#[tokio::test]
async fn a_receipt_that_is_on_its_way_is_waited_for_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let shop = Arc::new(Shop::open(dir.path(), u64::MAX).await);
    shop.land.hangs.store(true, Ordering::SeqCst);
    let payer = customer("wants it in writing");
    for (nonce, is_paid) in [(1, true), (2, false)] {
        let payment = json_of(&authorization(&shop, &payer, TEXT, [nonce; 32]).await);
        let amount: u128 = payment["accepted"]["amount"].as_str().unwrap().parse().unwrap();
        let request = RequestId::of_payment(TransferMethod::Eip3009, &payer.address().0.0, &[nonce; 32]);
        let buying = tokio::spawn({
            let shop = shop.clone();
            async move { shop.pays(TEXT, &payment).await }
        });
        while shop.in_the_book().await.0 < usize::from(nonce) {
            tokio::task::yield_now().await;
        }
        let asking = tokio::spawn({
            let shop = shop.clone();
            async move { asked(&shop, request).await }
        });
        while waiting(&shop).await == 0 {
            assert!(!asking.is_finished(), "it is waited for");
            tokio::task::yield_now().await;
        }
        let nobodys = RequestId::of_payment(TransferMethod::Eip3009, &payer.address().0.0, &[9; 32]);
        assert_eq!(asked(&shop, nobodys).await.0, 404);
        assert_eq!(waiting(&shop).await, 1, "nobody waits for what is not known");

        let settlement = match is_paid {
            true => Settlement::Paid { amount, tx: B256::repeat_byte(9), block: 1, recorded: false },
            false => Settlement::Unpaid(UnpaidWhy::UsedElsewhere),
        };
        shop.cx.tell(Event::Settled { request, settlement }).await;
        assert_eq!(buying.await.unwrap().status == 200, is_paid);
        let (status, receipt) = asking.await.unwrap();
        match is_paid {
            true => assert_eq!((status, &receipt["amount_uusdc"]), (200, &json!(amount.to_string())), "{receipt}"),
            false => assert_eq!((status, &receipt["error"]["code"]), (404, &json!("not_found")), "{receipt}"),
        }
        assert_eq!(waiting(&shop).await, 0);
    }
    Arc::into_inner(shop).expect("nobody else asks").close().await;
}
