//! The shipped model's own numbers, and answers with and without guesses.

use super::*;
use expect_test::expect;
use std::path::PathBuf;
use std::slice;
use std::sync::mpsc;

const CHAT_MODEL: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

fn args() -> Args {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../../.vivarium/models/");
    let model = PathBuf::from(format!("{models}{CHAT_MODEL}"));
    assert!(model.is_file(), "NO MODEL at {}: `cargo xtask setup` makes it", model.display());
    Args {
        model,
        socket: PathBuf::new(),
        adapters: Vec::new(),
        threads: 1,
        threads_max: 1,
        ctx: 512,
        slots: 4,
        exit_with_stdin: false,
        arriving: false,
    }
}

/// A question in the chat model's own form.
fn asked(question: &str) -> String {
    format!("<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
}

/// What repeats much of itself when it is answered.
const EDIT: &str = "Write this code again with `width` called `w`:\n\n\
    fn area(width: u32, height: u32) -> u32 {\n    width * height\n}\n\n\
    fn volume(width: u32, height: u32, depth: u32) -> u32 {\n    area(width, height) * depth\n}\n";

/// One answer, from the decoding thread's own side.
#[derive(Clone)]
struct Ran {
    /// Tokens that were gone on with: all but the last one. Only without guesses.
    ids: Vec<i32>,
    text: String,
    logprobs: Vec<TokenLogprob>,
    finish: Finish,
    tokens: u32,
    steps: u32,
}

fn ran(decoder: &mut Decoder<'_>, requests: &[Generate]) -> Vec<Ran> {
    ran_by(decoder, requests, |decoder| decoder.step())
}

fn ran_by(decoder: &mut Decoder<'_>, requests: &[Generate], mut step: impl FnMut(&mut Decoder<'_>)) -> Vec<Ran> {
    let (mut said, mut answers) = (Vec::new(), Vec::new());
    for (id, request) in (0..).zip(requests) {
        let (out, heard) = mpsc::channel();
        let prompt = decoder.model.tokenize(&request.prompt, request.add_bos);
        decoder.start(Key { connection: 0, id }, prompt, None, request.clone(), out);
        said.push(heard);
        answers.push(Ran {
            ids: Vec::new(),
            text: String::new(),
            logprobs: Vec::new(),
            finish: Finish::Cancelled,
            tokens: 0,
            steps: 0,
        });
    }
    while !decoder.schedule.is_idle() {
        step(decoder);
        for slot in decoder.schedule.slots_where(|_| true) {
            let sequence = decoder.schedule.sequence(slot).unwrap();
            let ran = &mut answers[usize::try_from(sequence.answer.key.id).unwrap()];
            ran.steps += 1;
            ran.ids.extend(sequence.next);
        }
    }
    for (ran, heard) in answers.iter_mut().zip(said) {
        for message in heard {
            match message {
                FromEngine::Tokens { text, logprobs, .. } => {
                    ran.text.push_str(&text);
                    ran.logprobs.extend(logprobs);
                }
                FromEngine::Done { finish, completion_tokens, .. } => {
                    (ran.finish, ran.tokens) = (finish, completion_tokens);
                }
                _ => {}
            }
        }
    }
    answers
}

fn one(decoder: &mut Decoder<'_>, request: Generate) -> Ran {
    ran(decoder, &[request]).remove(0)
}

/// Numbers of tokens are the model file's alone: they hold for every build.
#[test]
fn texts_become_the_tokens_that_they_always_were() {
    let _turn = crate::model::turn();
    let tokens =
        Model::load(&args().model).unwrap().tokenize(&asked("Grüße, 世界! What's 7*6?\n\tfn f(x: u32) {}"), false);
    expect!["1 4093 198 27302 7170 34878 85 28 216 7906 240 178 239 230 17 1812 506 216 39 26 38 47 198 197 7853 275 24 104 42 326 35 34 25 4548 2 198 1 520 9531 198"].assert_eq(&tokens.iter().map(|token| token.0.to_string()).collect::<Vec<_>>().join(" "));
}

/// What `golden.txt` has for this build, if it has anything: other instruction sets round otherwise, and so may other
/// compilers. A class is what a receipt's reader would need to make an answer again.
#[test]
fn answers_are_the_tokens_that_they_always_were() {
    let _turn = crate::model::turn();
    let args = args();
    let model = Arc::new(Model::load(&args.model).unwrap());
    let class = format!("{}; {}; {} thread", crate::model::BUILD, model.isa(), args.threads);
    let mut decoder = Decoder::new(&model, Vec::new(), &args).unwrap();
    let plain = |question: &str| Generate { lookup: false, ..Generate::greedy(asked(question), 33) };
    let greedy = plain("What is the capital of France? Tell me about it.");
    let seeded = Generate { temperature: 0.8, top_p: 0.95, seed: 7, ..plain("Tell me a story about a fox.") };
    let edit = plain(EDIT);
    let golden = include_str!("golden.txt");
    let mut missing = String::new();
    for (name, request) in [("greedy", greedy), ("seeded", seeded), ("edit", edit)] {
        let ids = one(&mut decoder, request.clone()).ids;
        assert_eq!(ids, one(&mut decoder, request).ids, "{name}: not even the same twice");
        let ids = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        let begin = format!("{class} | {name} | ");
        match golden.lines().find_map(|line| line.strip_prefix(&begin)) {
            Some(wanted) => assert_eq!(ids, wanted, "{begin}"),
            None => missing.push_str(&format!("{begin}{ids}\n")),
        }
    }
    if !missing.is_empty() {
        println!(
            "NOT COMPARED: src/decode/golden.txt has nothing of this class. If the answers are right, add:\n{missing}"
        );
    }
}

/// Counts of threads change in the middle of answers here, and nobody sees it.
#[test]
fn threads_change_nothing_but_the_time() {
    let _turn = crate::model::turn();
    let args = Args { threads_max: 2, ..args() };
    let model = Arc::new(Model::load(&args.model).unwrap());
    let mut decoder = Decoder::new(&model, Vec::new(), &args).unwrap();
    assert_eq!(decoder.threads.counts(), [1, 2], "this build gives the same bits on two threads as on one");
    let request = Generate { logprobs: Some(2), ..Generate::greedy(asked("Tell me a story about a fox."), 24) };
    let mut answers = Vec::new();
    for count in [1, 2] {
        decoder.threads.begin_with(count);
        assert!(decoder.set_threads(count));
        answers.push(one(&mut decoder, request.clone()));
    }
    // As if every step were the last of a trial.
    for (at, elapsed) in (0..400).zip([1, 30].into_iter().cycle()) {
        decoder.threads.made(1, std::time::Duration::from_millis(elapsed * (1 + at % 7)));
    }
    answers.push(one(&mut decoder, request));
    for other in &answers[1..] {
        assert_eq!((&answers[0].ids, &answers[0].logprobs), (&other.ids, &other.logprobs));
    }
}

/// With guesses an answer has the same text and the same probabilities, drawn by chance or not, alone and in company, and
/// where much repeats it takes fewer steps.
#[test]
fn guesses_change_nothing_but_the_steps() {
    let _turn = crate::model::turn();
    let args = args();
    let model = Arc::new(Model::load(&args.model).unwrap());
    let mut decoder = Decoder::new(&model, Vec::new(), &args).unwrap();
    let request = |prompt: &str, temperature: f32, lookup: bool| Generate {
        temperature,
        seed: 7,
        logprobs: Some(1),
        stop: vec!["\n\n\n".into()],
        lookup,
        ..Generate::greedy(prompt, 40)
    };
    // What repeats itself is gone on with by repeating it once more.
    let repeated = EDIT.repeat(3);
    let mut fewer = false;
    for prompt in [repeated.as_str(), &asked(EDIT), &asked("Tell me a story about a fox.")] {
        for temperature in [0.0, 0.8] {
            let plain = one(&mut decoder, request(prompt, temperature, false));
            let guessed = one(&mut decoder, request(prompt, temperature, true));
            let company = [request(prompt, temperature, true), request("Hi", 0.0, true)];
            let beside = ran(&mut decoder, &company).remove(0);
            for other in [&guessed, &beside] {
                assert_eq!(plain.text, other.text);
                assert_eq!(plain.logprobs, other.logprobs, "{prompt}");
                assert_eq!((plain.finish, plain.tokens), (other.finish, other.tokens));
            }
            println!("{} tokens, {} steps: {prompt:.50}", guessed.tokens, guessed.steps);
            fewer |= guessed.steps * 10 < plain.steps * 9;
        }
    }
    // Where rows round otherwise in company there are no guesses, and the above says nothing.
    assert_eq!(fewer, decoder.may_guess(None), "guesses were right often enough to save a tenth of the steps");
}

/// Wherever a prompt is cut between blocks, and whatever runs beside it, its answer and the one beside it have the same
/// bits, drawn by chance or not.
#[test]
fn where_a_prompt_is_cut_does_not_show() {
    let _turn = crate::model::turn();
    let args = args();
    let model = Arc::new(Model::load(&args.model).unwrap());
    let mut decoder = Decoder::new(&model, Vec::new(), &args).unwrap();
    assert!(decoder.may_cut(), "this build gives a token the same bits in company as alone");
    let request = |prompt: &str, temperature: f32| Generate {
        temperature,
        seed: 7,
        logprobs: Some(2),
        lookup: false,
        ..Generate::greedy(prompt, 12)
    };
    let long = EDIT.repeat(4);
    for temperature in [0.0, 0.8] {
        let (asked, beside) = (request(&long, temperature), request("Once upon a time", temperature));
        let mut whole: Option<Vec<Ran>> = None;
        for sizes in [&[PIECE_MAX][..], &[BLOCK], &[BLOCK, 96, 64, 160]] {
            // Nothing of it is in a context any more.
            (0..4).for_each(|slot| decoder.schedule.forget(slot));
            let alone = ran_in_pieces(&mut decoder, slice::from_ref(&asked), sizes);
            (0..4).for_each(|slot| decoder.schedule.forget(slot));
            let mut answers = ran_in_pieces(&mut decoder, &[beside.clone(), asked.clone()], sizes);
            answers.extend(alone);
            let whole = whole.get_or_insert_with(|| answers.clone());
            for (one, other) in whole.iter().zip(&answers) {
                assert_eq!(one.text, other.text, "{sizes:?}");
                assert_eq!(one.logprobs, other.logprobs, "{sizes:?}");
            }
            assert_eq!(answers[1].logprobs, answers[2].logprobs, "in company and alone, {sizes:?}");
        }
    }
}

/// Beside a running answer a prompt is read a block at a time where that takes long enough, alone in whole pieces.
#[test]
fn an_answer_goes_on_between_short_pieces_of_a_prompt() {
    let _turn = crate::model::turn();
    let args = args();
    let model = Arc::new(Model::load(&args.model).unwrap());
    let mut decoder = Decoder::new(&model, Vec::new(), &args).unwrap();
    let request = |prompt: &str, max_tokens| Generate { lookup: false, ..Generate::greedy(prompt, max_tokens) };
    let (running, long) = (request("1 2 3 4 5 6 7 8 9", 24), request(&EDIT.repeat(4), 1));
    let mut read = |requests: &[Generate]| {
        (0..4).for_each(|slot| decoder.schedule.forget(slot));
        ran_by(&mut decoder, requests, |decoder| {
            decoder.pace.read(BLOCK, Duration::from_secs(9));
            decoder.step();
        })
    };
    let beside = read(&[running, long.clone()]).remove(1).steps;
    let alone = read(&[long]).remove(0).steps;
    // The last piece ends the answer, which is one token.
    let pieces = |size: usize| u32::try_from(324_usize.div_ceil(size)).unwrap() - 1;
    assert_eq!((beside, alone), (pieces(BLOCK), pieces(PIECE_MAX)));
}

/// Prompts are read in pieces of these lengths, in turn.
fn ran_in_pieces(decoder: &mut Decoder<'_>, requests: &[Generate], sizes: &[usize]) -> Vec<Ran> {
    let mut sizes = sizes.iter().copied().cycle();
    let (mut tokens, mut took) = (0, Duration::ZERO);
    let answers = ran_by(decoder, requests, |decoder| {
        let rows = decoder.schedule.rows();
        decoder.decode_answers(&rows);
        if let Some(piece) = decoder.schedule.piece(sizes.next().unwrap()) {
            let started = Instant::now();
            decoder.decode_piece(&piece);
            tokens += piece.range.len();
            took += started.elapsed();
        }
        decoder.admit();
    });
    println!("{tokens} tokens read in {} ms", took.as_millis());
    answers
}
