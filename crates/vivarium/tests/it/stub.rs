//! Contracts that only answer, for a development chain: STAND-INS for a treasury or a lease market in one state.

use alloy::primitives::Address;

/// What a call of one selector gets.
pub enum Does {
    Returns(Vec<u8>),
    /// The same call to this contract under that selector; reverts with it.
    Calls(Address, [u8; 4]),
}

/// Code for `anvil_setCode` that does this, and reverts else.
pub fn code(entries: &[([u8; 4], Does)]) -> String {
    let push = |n: usize| [&[0x61][..], &u16::try_from(n).unwrap().to_be_bytes()].concat();
    let size = |does: &Does| if let Does::Returns(_) = does { 14 } else { 59 };
    // PUSH0 CALLDATALOAD PUSH1 224 SHR
    let mut code = vec![0x5f, 0x35, 0x60, 0xe0, 0x1c];
    let reverts = code.len() + 11 * entries.len();
    let mut body = reverts + 4;
    for (selector, does) in entries {
        // DUP1 PUSH4 EQ PUSH2 JUMPI
        code.extend([&[0x80, 0x63][..], selector, &[0x14], &push(body), &[0x57]].concat());
        body += size(does);
    }
    // JUMPDEST PUSH0 PUSH0 REVERT
    code.extend([0x5b, 0x5f, 0x5f, 0xfd]);
    let mut data = body;
    for (_, does) in entries {
        match does {
            Does::Returns(bytes) => {
                // JUMPDEST, PUSH2 length PUSH2 offset PUSH0 CODECOPY, PUSH2 length PUSH0 RETURN
                let length = push(bytes.len());
                code.extend([&[0x5b][..], &length, &push(data), &[0x5f, 0x39], &length, &[0x5f, 0xf3]].concat());
                data += bytes.len();
            }
            Does::Calls(to, selector) => {
                // JUMPDEST, all of the call into memory, and four bytes of it anew
                code.extend([0x5b, 0x36, 0x5f, 0x5f, 0x37]);
                (0..4).for_each(|at| code.extend([0x60, selector[usize::from(at)], 0x60, at, 0x53]));
                // CALL without value, of no answer; ISZERO PUSH2 JUMPI STOP
                code.extend([&[0x5f, 0x5f, 0x36, 0x5f, 0x5f, 0x73][..], to.as_slice(), &[0x5a, 0xf1, 0x15]].concat());
                code.extend([&push(reverts)[..], &[0x57, 0x00]].concat());
            }
        }
    }
    assert_eq!(code.len(), body, "each body is as long as its jump says");
    let bytes = entries.iter().filter_map(|(_, does)| if let Does::Returns(bytes) = does { Some(bytes) } else { None });
    bytes.for_each(|bytes| code.extend(bytes));
    format!("0x{}", hex::encode(code))
}
