//! Why a steward says no. Each reason has a code for programs, a sentence for people, and a status that says who
//! must act.

use crate::watch::NotDue;
use alloy::primitives::{Address, B256};
use std::fmt;
use store::checkpoint::Mismatch;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// This steward is not one of that treasury's, or does not know it.
    NotWatched,
    WrongStage,
    WrongAgent,
    /// `signer`: who signed, if anybody did.
    WrongOperator {
        operator: Address,
        signer: Option<Address>,
    },
    WrongEpoch {
        current: u64,
        got: u64,
    },
    WrongSeq {
        expected: u64,
        got: u64,
    },
    WrongPrev,
    AlreadySigned {
        seq: u64,
        before: B256,
    },
    /// The object or a block that it names cannot be fetched. The agent stores it first.
    NotStored {
        what: String,
    },
    /// The object is not what a checkpoint or a segment header looks like, or its signature is no signature.
    BadObject {
        why: String,
    },
    /// The object has no share for this steward, or one that does not open.
    NoShare {
        why: String,
    },
    /// A segment that does not follow the last one.
    Gap {
        why: String,
    },
    /// Shares go only to an operator that has to restore: after takeover, rescue or eviction.
    NotRestoring,
    /// Only `rescue` is signed by a daemon; everything else is a person's order.
    NotForDaemons {
        action: String,
    },
    /// Birth did not let this daemon rescue alone, or the agent is paused: the quorum's people sign, or nobody.
    LeftToPeople,
    NotDue(NotDue),
    BadOffer {
        offer: u64,
    },
    /// A term or a prepayment that this steward would not order on that offer.
    BadTerms,
    WrongNonce {
        expected: u64,
        got: u64,
    },
    BadDeadline,
    /// Asked too often: wait.
    TooOften,
    /// The two endpoints do not say the same, or none answers. Nothing is signed on half a view.
    NoView {
        why: String,
    },
    /// A contract of the treasury's refuses, or answers nonsense. Other treasuries may be well.
    Unreadable {
        why: String,
    },
    /// The request itself is not as it should be.
    BadRequest {
        why: String,
    },
    /// This steward's disk failed: it signs nothing that it could forget.
    Disk {
        why: String,
    },
}

impl Refusal {
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotWatched => "not_watched",
            Self::WrongStage => "wrong_stage",
            Self::WrongAgent => "wrong_agent",
            Self::WrongOperator { .. } => "wrong_operator",
            Self::WrongEpoch { .. } => "wrong_epoch",
            Self::WrongSeq { .. } => "wrong_seq",
            Self::WrongPrev => "wrong_prev",
            Self::AlreadySigned { .. } => "already_signed",
            Self::NotStored { .. } => "not_stored",
            Self::BadObject { .. } => "bad_object",
            Self::NoShare { .. } => "no_share",
            Self::Gap { .. } => "gap",
            Self::NotRestoring => "not_restoring",
            Self::NotForDaemons { .. } => "not_for_daemons",
            Self::LeftToPeople => "left_to_people",
            Self::NotDue(why) => why.as_str(),
            Self::BadOffer { .. } => "bad_offer",
            Self::BadTerms => "bad_terms",
            Self::WrongNonce { .. } => "wrong_nonce",
            Self::BadDeadline => "bad_deadline",
            Self::TooOften => "too_often",
            Self::NoView { .. } => "no_view",
            Self::Unreadable { .. } => "unreadable",
            Self::BadRequest { .. } => "bad_request",
            Self::Disk { .. } => "disk",
        }
    }

    /// HTTP status: 400 fix the request, 403 never, 404 not here, 409 the state is another, 429 and 503 later.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotWatched => 404,
            Self::BadRequest { .. } | Self::BadObject { .. } | Self::BadDeadline => 400,
            Self::WrongOperator { .. }
            | Self::WrongAgent
            | Self::AlreadySigned { .. }
            | Self::NotForDaemons { .. }
            | Self::LeftToPeople
            | Self::BadOffer { .. }
            | Self::BadTerms => 403,
            Self::TooOften => 429,
            Self::NoView { .. } | Self::Unreadable { .. } | Self::NotStored { .. } | Self::Disk { .. } => 503,
            _ => 409,
        }
    }
}

impl From<Mismatch> for Refusal {
    fn from(mismatch: Mismatch) -> Self {
        match mismatch {
            Mismatch::Agent { .. } | Mismatch::Chain { .. } => Self::WrongAgent,
            Mismatch::Signature { found, expected } => Self::WrongOperator { operator: expected, signer: found },
            Mismatch::Epoch { found, expected } => Self::WrongEpoch { current: expected, got: found },
            Mismatch::Seq { found, expected } => Self::WrongSeq { expected, got: found },
            Mismatch::Prev { .. } => Self::WrongPrev,
            Mismatch::Gap { .. } => Self::Gap { why: mismatch.to_string() },
            Mismatch::Version { .. } | Mismatch::Shares { .. } => Self::BadObject { why: mismatch.to_string() },
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotWatched => write!(f, "this steward is none of that treasury's"),
            Self::WrongStage => write!(f, "nobody acts for the treasury in its present stage"),
            Self::WrongAgent => write!(f, "the object belongs to another treasury or chain"),
            Self::WrongOperator { operator, signer: Some(signer) } => {
                write!(f, "signed by {signer} (or altered), but the operator on chain is {operator}")
            }
            Self::WrongOperator { operator, signer: None } => {
                write!(f, "no valid signature; the operator on chain is {operator}")
            }
            Self::WrongEpoch { current, got } => write!(f, "made in epoch {got}; the chain is in epoch {current}"),
            Self::WrongSeq { expected, got } => write!(f, "number {got}; the next one is {expected}"),
            Self::WrongPrev => write!(f, "it does not follow the last acknowledged checkpoint"),
            Self::AlreadySigned { seq, before } => {
                write!(f, "another object, {before}, was acknowledged as number {seq} in this epoch")
            }
            Self::NotStored { what } => write!(f, "{what} cannot be fetched"),
            Self::BadObject { why } => write!(f, "not a valid object: {why}"),
            Self::NoShare { why } => write!(f, "no share that this steward can open: {why}"),
            Self::Gap { why } => write!(f, "the segment does not follow the last one: {why}"),
            Self::NotRestoring => {
                write!(f, "the operator did not come by takeover, rescue or eviction, or has restored")
            }
            Self::NotForDaemons { action } => {
                write!(f, "the daemon signs `rescue` only; {action:?} is a person's order")
            }
            Self::LeftToPeople => {
                write!(f, "birth left rescue to people, or the agent is paused: the quorum signs by hand")
            }
            Self::NotDue(NotDue::NotAlive) => write!(f, "the agent is not alive"),
            Self::NotDue(NotDue::NoCode) => write!(f, "the agent's code is revoked: nothing can be rented for it"),
            Self::NotDue(NotDue::Asleep) => write!(f, "the agent sleeps and is not funded to be woken on this offer"),
            Self::NotDue(NotDue::NoSilence) => write!(f, "this steward sees no silence"),
            Self::NotDue(NotDue::StandbyComing) => write!(f, "a standby was rented and still has time to get ready"),
            Self::NotDue(NotDue::StandbyReady) => write!(f, "a ready standby has not had its chance to take over"),
            Self::BadOffer { offer } => write!(f, "offer {offer} is not the one that this steward would take"),
            Self::BadTerms => write!(f, "term and prepayment are not what this steward would order on that offer"),
            Self::WrongNonce { expected, got } => write!(f, "order number {got}; the treasury expects {expected}"),
            Self::BadDeadline => write!(f, "the deadline is past, or too far away"),
            Self::TooOften => write!(f, "asked too often; wait"),
            Self::NoView { why } => write!(f, "no agreed view of the chain: {why}"),
            Self::Unreadable { why } => write!(f, "the treasury cannot be read: {why}"),
            Self::BadRequest { why } => write!(f, "{why}"),
            Self::Disk { why } => write!(f, "the steward's disk: {why}"),
        }
    }
}

impl std::error::Error for Refusal {}
