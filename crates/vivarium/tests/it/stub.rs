//! Contracts that only answer, for a development chain: STAND-INS for a treasury or a lease market in one state.

/// Code for `anvil_setCode` that answers calls of these selectors with these bytes, and reverts else.
pub fn code(answers: &[([u8; 4], Vec<u8>)]) -> String {
    // JUMPDEST, PUSH2 length PUSH2 offset PUSH0 CODECOPY, PUSH2 length PUSH0 RETURN
    const BODY_BYTES: usize = 14;
    let push = |n: usize| [&[0x61][..], &u16::try_from(n).unwrap().to_be_bytes()].concat();
    // PUSH0 CALLDATALOAD PUSH1 224 SHR
    let mut code = vec![0x5f, 0x35, 0x60, 0xe0, 0x1c];
    // JUMPDEST PUSH0 PUSH0 REVERT
    let reverts = [0x5b, 0x5f, 0x5f, 0xfd];
    let mut body = code.len() + 11 * answers.len() + reverts.len();
    for (selector, _) in answers {
        // DUP1 PUSH4 EQ PUSH2 JUMPI
        code.extend([&[0x80, 0x63][..], selector, &[0x14], &push(body), &[0x57]].concat());
        body += BODY_BYTES;
    }
    code.extend(reverts);
    let mut data = body;
    for (_, bytes) in answers {
        let length = push(bytes.len());
        code.extend([&[0x5b][..], &length, &push(data), &[0x5f, 0x39], &length, &[0x5f, 0xf3]].concat());
        data += bytes.len();
    }
    assert_eq!(code.len(), body, "each body is as long as its jump says");
    answers.iter().for_each(|(_, bytes)| code.extend(bytes));
    format!("0x{}", hex::encode(code))
}
