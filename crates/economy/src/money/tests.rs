use super::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;

fn check(text: &str, expected: Expect) {
    let shown = match Usdc::parse(text) {
        Ok(amount) => amount.to_string(),
        Err(e) => e.to_string(),
    };
    expected.assert_eq(&shown);
}

#[test]
fn amounts_are_parsed_strictly() {
    check("100", expect!["100.000000 USDC"]);
    check("1.50", expect!["1.500000 USDC"]);
    check("0.000001", expect!["0.000001 USDC"]);
    check("007", expect!["7.000000 USDC"]);
    check("", expect!["an amount is missing"]);
    for text in ["1abc", ".5", "1.", "-1", "+1", " 1", "1 ", "1e3", "1,5", "1.2.3", "0x10", "1_000", "١"] {
        check(text, expect!["an amount is digits with at most one dot, like 1.50"]);
    }
    check("0.0000001", expect!["an amount has at most six decimals"]);
    check("340282366920938463463374607431768211456", expect!["the amount is larger than the token can hold"]);
    check("340282366920938463463374607431769", expect!["the amount is larger than the token can hold"]);
}

#[test]
fn the_wire_form_is_canonical() {
    assert_eq!(Usdc::parse_micro("0"), Ok(Usdc(0)));
    assert_eq!(Usdc::parse_micro("1500000"), Ok(Usdc(1_500_000)));
    for text in ["", "01", "1.0", "-1", "+1", "1 "] {
        assert!(Usdc::parse_micro(text).is_err(), "{text:?} was taken");
    }
}

#[test]
fn rent_is_rounded_in_the_direction_of_its_name() {
    assert_eq!(Usdc::rent_up(1, 1), Usdc(1));
    assert_eq!(Usdc::rent_down(1, 999_999), Usdc(0));
    assert_eq!(Usdc::rent_down(10_000_000, 86_400), Usdc(864_000));
    assert_eq!(Usdc(864_000).secs_down(10_000_000), 86_400);
    assert_eq!(Usdc(5).secs_down(0), u64::MAX);
}

proptest! {
    #[test]
    fn mul_div_agrees_with_its_definition(a: u128, b: u128, c in 1u128..) {
        // quotient x c + remainder = a x b, checked modulo 2^128 and by the remainder's range.
        if let Some((quotient, remainder)) = mul_div(a, b, c) {
            prop_assert!(remainder < c);
            prop_assert_eq!(quotient.wrapping_mul(c).wrapping_add(remainder), a.wrapping_mul(b));
            prop_assert_eq!(mul_div_up(a, b, c).is_none(), remainder > 0 && quotient == u128::MAX);
        } else {
            // Too large: then a must exceed what c leaves room for.
            prop_assert!(a / c >= 1 || b / c >= 1 || a.checked_mul(b).is_none());
        }
    }

    #[test]
    fn mul_div_small_is_exact(a in 0u64.., b in 0u64.., c in 1u64..) {
        let (a, b, c) = (u128::from(a), u128::from(b), u128::from(c));
        prop_assert_eq!(mul_div_down(a, b, c), Some(a * b / c));
        prop_assert_eq!(mul_div_up(a, b, c), Some((a * b).div_ceil(c)));
    }

    #[test]
    fn what_is_shown_can_be_parsed(micro in 0u128..u128::MAX / 2) {
        let shown = Usdc(micro).to_string();
        let number = shown.strip_suffix(" USDC").expect("the unit ends it");
        prop_assert_eq!(Usdc::parse(number), Ok(Usdc(micro)));
    }
}
