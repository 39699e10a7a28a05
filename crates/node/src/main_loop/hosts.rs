//! What a node asks of hosts whose prices change.

use super::crashes::{MOVES_AT, lease, mover, view};
use super::tests::block;
use super::*;
use economy::{OfferView, Output, View};

/// Of an active lease whose renewal is due, of one that has just begun, and of one that is young enough to move to.
const DAY: u64 = 86_400;
const OLD: (u64, u64) = (MOVES_AT - 29 * DAY, MOVES_AT + DAY);
const NEW: (u64, u64) = (MOVES_AT - DAY, MOVES_AT + 29 * DAY);

/// The offer of the provider `0xA0 + id`, micro-USDC x 1e-6 per second. The price cap is 20,000,000.
fn offer(id: u8, price_e6: u64, free: u32) -> OfferView {
    let (min_term, max_term) = (86_400, 2_592_000);
    OfferView { id: id.into(), provider: [0xA0 + id; 20], price_e6, free, min_term, max_term, served: 9, failed: 0 }
}

/// A node that has just begun to lead, on what it sees of hosts: block 1 is its first.
fn leading(dir: &std::path::Path) -> Node {
    let mut node = mover(dir);
    let mut news = block(&node, 1, 1, (1, true));
    news.head.timestamp = MOVES_AT;
    node.on_chain(news).unwrap();
    node
}

/// What it asks of hosts when it sees this, in the words of its outputs.
fn asks(node: &mut Node, view: View) -> Vec<String> {
    let (live, at) = (node.live.as_mut().unwrap(), view.timestamp);
    live.record(at, &Recorded::Life(Input::Block(Box::new(view)))).unwrap();
    live.durable = live.journal.last_lsn();
    let effects = std::iter::from_fn(|| live.release());
    let told = effects.filter_map(|effect| match effect {
        Effect::Life(_, Output::Announce { lease }) => Some(format!("move to lease {lease}")),
        Effect::Life(_, Output::Rent { offer, .. }) => Some(format!("rent offer {offer}")),
        _ => None,
    });
    told.collect()
}

/// The provider of the active lease asks twice as much for the next term: its tenant moves to the standby when its renewal
/// is due, whatever others ask, and rents the place beside its new host from whoever asks less.
#[tokio::test]
async fn a_provider_that_raises_its_price_at_renewal_is_left_and_not_rented_from_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = leading(dir.path());
    let raised = vec![offer(1, 19_000_000, 1), offer(2, 10_000_000, 0), offer(3, 12_000_000, 1)];
    let seen = |number: u64, offers: &[OfferView]| View { offers: offers.to_vec(), ..view(number, None, false) };
    let young = View { active: Some(lease(1, 0xA1, NEW)), ..seen(2, &raised) };
    assert_eq!(asks(&mut node, young), Vec::<String>::new(), "nothing is due");
    node.life(Input::StandbyAnswered { lease: 2, ready: true }).unwrap();
    assert_eq!(asks(&mut node, seen(3, &raised)), ["move to lease 2"]);

    // On the new host.
    let there = |number: u64, offers: &[OfferView]| View {
        active: Some(lease(2, 0xA2, NEW)),
        draining: Some(lease(1, 0xA1, OLD)),
        standby: None,
        ..seen(number, offers)
    };
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(asks(&mut leading(dir.path()), there(2, &raised)), ["rent offer 3"]);
    // As before it would have been the cheapest.
    let before = [offer(1, 9_500_000, 1), raised[1].clone(), raised[2].clone()];
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(asks(&mut leading(dir.path()), there(2, &before)), ["rent offer 1"]);
}

/// Above the cap nothing is rented, not even where nobody else has room: the agent waits for another offer.
#[tokio::test]
async fn no_price_above_the_cap_is_paid_for_want_of_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = leading(dir.path());
    let alone = |number: u64, price_e6: u64| View {
        active: Some(lease(2, 0xA2, NEW)),
        standby: None,
        offers: vec![offer(1, price_e6, 1), offer(3, 12_000_000, 0)],
        ..view(number, None, false)
    };
    assert_eq!(asks(&mut node, alone(2, 20_000_001)), Vec::<String>::new());
    let said: Vec<String> = node.live.as_ref().unwrap().state.log.last(9).map(|line| line.text.clone()).collect();
    assert!(said.iter().any(|text| text.starts_with("rents no standby")), "{said:?}");
    assert_eq!(asks(&mut node, alone(3, 20_000_000)), ["rent offer 1"]);
}

/// Customers who read the status before they ask see the price that they are charged, and not the one of a block ago.
#[tokio::test]
async fn a_price_is_told_as_soon_as_it_is_in_force() {
    let dir = tempfile::tempdir().unwrap();
    let mut node = leading(dir.path());
    node.life(Input::Block(Box::new(view(2, None, false)))).unwrap();
    assert_eq!(node.shared.price(), None, "not before it is on disk");
    node.on_durable(super::tests::records(&node)).unwrap();
    let (price, status) = (node.shared.price().unwrap(), node.shared.status().unwrap());
    assert_eq!(status.price.call_uusdc, price.call_uusdc.0.to_string());
    assert_eq!(status.price.mtok_completion_uusdc, price.mtok_completion_uusdc.0.to_string());
    // And once it sells no more, none.
    let stopped = View { stage: economy::Stage::Stopped, ..view(3, None, false) };
    node.life(Input::Block(Box::new(stopped))).unwrap();
    node.on_durable(super::tests::records(&node)).unwrap();
    assert_eq!(node.shared.price(), None);
    assert_eq!(node.shared.status().unwrap().price.call_uusdc, "0");
}
