use crate::support::{Noise, SMALL, Store, folder, noise, refused, store};
use proptest::prelude::*;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use store::cid::{self, Cid};
use store::dag::{self, Link, Node};
use store::unixfs::{
    Limits, Listing, Object, Profile, Slot, export, find, import_bytes, import_path, import_reader, read, read_file,
};
use store::{Blocks, Kind};

#[derive(Deserialize)]
struct Reference {
    files: Vec<File>,
    directories: Vec<Directory>,
}

#[derive(Deserialize)]
struct File {
    profile: String,
    content: String,
    bytes: u64,
    cid: String,
}

#[derive(Deserialize)]
struct Directory {
    name: String,
    profile: String,
    cid: String,
}

fn reference() -> Reference {
    serde_json::from_str(include_str!("../reference/cids.json")).unwrap()
}

fn profile(name: &str) -> Profile {
    match name {
        "raw-256k-174" => Profile { raw_leaves: true, cid_v0: false, ..Profile::V0_2015 },
        "raw-10-3" => Profile { chunk_bytes: 10, width: 3, ..Profile::V1_2025 },
        name => Profile::parse(name).unwrap(),
    }
}

#[test]
fn files_get_the_cids_that_the_javascript_importer_gives_them() {
    let files = reference().files;
    assert_eq!(files.len(), 31);
    for file in files {
        let content: Box<dyn Read> = match file.content.as_str() {
            "zeros" => Box::new(std::io::repeat(0)),
            _ => Box::new(Noise::new()),
        };
        let imported =
            import_reader(&mut content.take(file.bytes), profile(&file.profile), &mut |_, _| Ok(())).unwrap();
        assert_eq!(imported.cid.to_string(), file.cid, "{} {} {}", file.profile, file.content, file.bytes);
        assert_eq!(imported.bytes, file.bytes);
    }
}

/// The content of Kubo's vectors: the key stream of ChaCha20 (RFC 8439) under the sha2-256 of a seed, from block 0, with a
/// nonce of zeros.
struct KeyStream {
    state: [u32; 16],
    left: Vec<u8>,
}

impl KeyStream {
    fn new(seed: &str) -> Self {
        let key: [u8; 32] = cid::digest(&cid::of_raw(seed.as_bytes()));
        let mut state = [0; 16];
        state[..4].copy_from_slice(&[0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574]);
        for (word, bytes) in state[4..12].iter_mut().zip(key.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        Self { state, left: Vec::new() }
    }

    fn block(&mut self) -> [u8; 64] {
        let mut x = self.state;
        let mut quarter = |a: usize, b: usize, c: usize, d: usize| {
            for (by, mix, to, turn) in [(a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)] {
                x[by] = x[by].wrapping_add(x[mix]);
                x[to] = (x[to] ^ x[by]).rotate_left(turn);
            }
        };
        for _ in 0..10 {
            (0..4).for_each(|n| quarter(n, n + 4, n + 8, n + 12));
            (0..4).for_each(|n| quarter(n, 4 + (n + 1) % 4, 8 + (n + 2) % 4, 12 + (n + 3) % 4));
        }
        let mut out = [0; 64];
        for (bytes, (word, before)) in out.as_chunks_mut::<4>().0.iter_mut().zip(x.iter().zip(self.state)) {
            *bytes = word.wrapping_add(before).to_le_bytes();
        }
        self.state[12] += 1;
        out
    }
}

impl Read for KeyStream {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.left.is_empty() {
            for _ in 0..1024 {
                let block = self.block();
                self.left.extend_from_slice(&block);
            }
        }
        let length = out.len().min(self.left.len());
        let rest = self.left.split_off(length);
        out[..length].copy_from_slice(&self.left);
        self.left = rest;
        Ok(length)
    }
}

/// Kubo's own vectors: `test/cli/cid_profiles_test.go` of ipfs/kubo, with the content of its
/// `testutils/random_deterministic.go`. A file of as many chunks as a node may have links, and one more.
#[test]
fn files_get_the_cids_that_kubo_publishes() {
    let hello = |profile| import_bytes(b"hello world", profile, &mut |_, _| Ok(())).unwrap().cid.to_string();
    assert_eq!(hello(Profile::V0_2015), "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD");
    assert_eq!(hello(Profile::V1_2025), "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e");
    for (profile, seed, chunks, links, wanted) in [
        (Profile::V0_2015, "v0-seed", 174, 174, "QmUbBALi174SnogsUzLpYbD4xPiBSFANF4iztWCsHbMKh2"),
        (Profile::V0_2015, "v0-seed", 175, 2, "QmepeWtdmS1hHXx1oZXsPUv6bMrfRRKfZcoPPU4eEfjnbf"),
        (Profile::V1_2025, "v1-2025-seed", 1024, 1024, "bafybeihmf37wcuvtx4hpu7he5zl5qaf2ineo2lqlfrapokkm5zzw7zyhvm"),
        (Profile::V1_2025, "v1-2025-seed", 1025, 2, "bafybeihmzokxxjqwxjcryerhp5ezpcog2wcawfryb2xm64xiakgm4a5jue"),
    ] {
        let bytes = chunks * u64::try_from(profile.chunk_bytes).unwrap();
        let mut last = Vec::new();
        let content = &mut KeyStream::new(seed).take(bytes);
        let imported = import_reader(content, profile, &mut |_, block| {
            last = block;
            Ok(())
        });
        let imported = imported.unwrap();
        assert_eq!(imported.cid.to_string(), wanted, "{chunks} chunks");
        assert_eq!(dag::links(&cid::normal(&imported.cid), &last).unwrap().len(), links, "the root comes last");
    }
}

/// Kubo's own vectors again: the largest directory that is one block, and one byte more, which is sharded. Files of one byte
/// whose names are drawn from the key stream.
#[test]
fn directories_get_the_cids_that_kubo_publishes() {
    const LETTERS: &[u8; 39] = b"abcdefghijklmnopqrstuvwxyz01234567890-_";
    let (old, new) = ((Profile::V0_2015, "hamt-unixfs-v0-2015"), (Profile::V1_2025, "hamt-unixfs-v1-2025"));
    for ((profile, seed), files, name, last, links, wanted) in [
        (old, 4096, 30, 30, 4096, "QmX5GtRk3TSSEHtdrykgqm4eqMEn3n2XhfkFAis5fjyZmN"),
        (old, 4033, 31, 31, 256, "QmeMiJzmhpJAUgynAcxTQYek5PPKgdv3qEvFsdV3XpVnvP"),
        (new, 4766, 11, 21, 4766, "bafybeic3h7rwruealwxkacabdy45jivq2crwz6bufb5ljwupn36gicplx4"),
        (new, 4766, 11, 22, 256, "bafybeiegvuterwurhdtkikfhbxcldohmxp566vpjdofhzmnhv6o4freidu"),
    ] {
        let (dir, mut stream) = (folder(), KeyStream::new(seed));
        for file in 1..=files {
            let mut drawn = vec![0; if file == files { last } else { name }];
            stream.read_exact(&mut drawn).unwrap();
            let name: String =
                drawn.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect();
            fs::write(dir.path().join(name), b"x").unwrap();
        }
        let mut root = Vec::new();
        let made = import_path(dir.path(), profile, &mut |_, block| {
            root = block;
            Ok(())
        });
        let made = made.unwrap();
        assert_eq!(made.cid.to_string(), wanted, "{files} files, the last name of {last}");
        let linked = dag::links(&cid::normal(&made.cid), &root).unwrap().len();
        assert!(linked <= links && (links == 256 || linked == links), "{linked} links, the root comes last");
    }
}

/// A name of 200 digits.
fn long(number: u32) -> String {
    format!("{number:0200}")
}

#[test]
fn directories_get_the_cids_that_the_javascript_importer_gives_them() {
    let directories = reference().directories;
    assert_eq!(directories.len(), 18);
    for wanted in directories {
        // Entries of the largest directory that is one block, and what fills it to the byte.
        let (last, pair) = if wanted.profile == "unixfs-v1-2025" { (1065, 152) } else { (1120, 115) };
        let dir = folder();
        let write = |path: &str, content: &[u8]| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        };
        match wanted.name.as_str() {
            "empty" => {}
            "one" => write("hello.txt", b"hello\n"),
            "nested" => {
                write("a", b"a");
                write("B", b"b");
                write("ä.txt", "umlaut".as_bytes());
                write("sub/.hidden", b"");
                write("sub/deep/noise", &noise(3 << 20));
                fs::create_dir(dir.path().join("sub/empty")).unwrap();
            }
            "thousand" => (0..1000).for_each(|i| write(&format!("file-{i}"), i.to_string().as_bytes())),
            "ten-thousand" => (0..10_000).for_each(|i| write(&format!("file-{i}"), i.to_string().as_bytes())),
            "last-flat" => (0..last).for_each(|i| write(&long(i), b"x")),
            "exact" => {
                (0..last - 1).for_each(|i| write(&long(i), b"x"));
                ["y", "z"].iter().for_each(|name| write(&name.repeat(pair), b"x"));
            }
            "first-sharded" => (0..=last).for_each(|i| write(&long(i), b"x")),
            "shard-in-shard" => {
                (0..1200).for_each(|i| write(&long(i), b"x"));
                (0..1300).for_each(|i| write(&format!("sub/{}", long(i)), b"x"));
                write("ä", "umlaut".as_bytes());
            }
            other => panic!("{other} is not made here"),
        }
        let here = store();
        let profile = profile(&wanted.profile);
        // Ten thousand files are cut and named; kept they would only take long.
        let keeps = wanted.name != "ten-thousand";
        let made = import_path(dir.path(), profile, &mut |cid, bytes| match keeps {
            true => here.blocks.put_later(&cid, &bytes),
            false => Ok(()),
        })
        .unwrap();
        assert_eq!(made.cid.to_string(), wanted.cid, "{} {}", wanted.name, wanted.profile);
        if !keeps {
            continue;
        }
        // And out again: the same names, each found by itself too.
        let names: BTreeSet<String> =
            fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        let listed: Vec<_> = Listing::of(&here.blocks, &made.cid).unwrap().map(Result::unwrap).collect();
        assert_eq!(listed.len(), names.len());
        assert_eq!(listed.iter().map(|e| e.name.clone()).collect::<BTreeSet<_>>(), names, "{}", wanted.name);
        for entry in listed.iter().step_by(97) {
            let found = find(&here.blocks, &made.cid, &entry.name, |_| {}).unwrap();
            assert_eq!(found.as_ref(), Some(entry));
        }
        assert_eq!(find(&here.blocks, &made.cid, "nobody is called so", |_| {}).unwrap(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn what_goes_in_comes_out(content in proptest::collection::vec(any::<u8>(), 0..3000), chunk in 40usize..400, width in 2usize..6, raw_leaves: bool) {
        let here = store();
        let profile = Profile { chunk_bytes: chunk, width, raw_leaves, cid_v0: !raw_leaves };
        let made = import_bytes(&content, profile, &mut |cid, bytes| here.blocks.put_later(&cid, &bytes)).unwrap();
        prop_assert_eq!(read_file(&here.blocks, &made.cid, content.len()).unwrap(), content);
    }

    #[test]
    fn no_block_makes_the_reader_panic(bytes: Vec<u8>, data: Vec<u8>) {
        let _ = read(&cid::of_dag_pb(&bytes), &bytes);
        let bytes = Node { links: Vec::new(), data }.encode();
        let _ = read(&cid::of_dag_pb(&bytes), &bytes);
    }
}

#[test]
fn a_directory_of_programs_comes_out_whole_and_executable() {
    let here = store();
    let source = here.dir.path().join("code");
    fs::create_dir_all(source.join("lib")).unwrap();
    fs::write(source.join("vivarium"), noise(3 << 20)).unwrap();
    fs::write(source.join("lib/extra.so"), b"so").unwrap();
    let made = import_path(&source, Profile::V1_2025, &mut |cid, bytes| here.blocks.put(&cid, &bytes)).unwrap();
    assert_eq!(made.bytes, (3 << 20) + 2);

    let dest = here.dir.path().join("out");
    let limits = Limits { executable: true, ..Limits::default() };
    assert_eq!(export(&here.blocks, &made.cid, &dest, limits).unwrap(), made.bytes);
    assert_eq!(fs::read(dest.join("vivarium")).unwrap(), noise(3 << 20));
    assert_eq!(fs::metadata(dest.join("vivarium")).unwrap().permissions().mode() & 0o777, 0o755);
    // Exporting again finds the name taken and changes nothing.
    refused(export(&here.blocks, &made.cid, &dest, limits), Kind::Usage, "is there already");
}

#[test]
fn a_missing_block_is_named_and_nothing_half_written_stays() {
    let here = store();
    let root = here.add(&noise(10_000));
    let victim = here.blocks.iter().map(Result::unwrap).map(|(c, _)| c).find(|c| c.codec() == cid::RAW).unwrap();
    here.blocks.delete(&victim).unwrap();
    let dest = here.dir.path().join("out");
    refused(export(&here.blocks, &root, &dest, Limits::default()), Kind::Missing, &victim.to_string());
    let left: Vec<_> = fs::read_dir(here.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| !n.to_string_lossy().contains("out")), "{left:?}");
}

/// A directory node of a stranger.
fn directory(here: &Store, names: &[&str]) -> Cid {
    let leaf = here.put_raw(b"leaf");
    let links = names.iter().map(|n| Link { cid: leaf, name: (*n).to_owned(), tsize: 4 }).collect();
    here.put_node(&Node { links, data: vec![8, 1] })
}

#[test]
fn names_that_would_leave_the_directory_are_refused_before_anything_is_written() {
    let here = store();
    for bad in ["..", ".", "", "../../escape", "/etc/passwd", "a/b", "a\\b", "nul\0byte"] {
        let root = directory(&here, &["good", bad]);
        let dest = here.dir.path().join("out");
        refused(export(&here.blocks, &root, &dest, Limits::default()), Kind::Corrupt, "would leave its directory");
        assert!(!dest.exists() && !here.dir.path().join("escape").exists(), "{bad:?}");
    }
    let twice = directory(&here, &["same", "same"]);
    refused(export(&here.blocks, &twice, &here.dir.path().join("out"), Limits::default()), Kind::Corrupt, "twice");
    let long = "n".repeat(256);
    let long = directory(&here, &[&long]);
    refused(export(&here.blocks, &long, &here.dir.path().join("out"), Limits::default()), Kind::Corrupt, "256 bytes");
}

#[test]
fn symbolic_links_are_refused_by_name() {
    let here = store();
    let link = here.put_node(&Node { links: vec![], data: [&[8, 4, 0x12, 11][..], b"/etc/passwd"].concat() });
    refused(export(&here.blocks, &link, &here.dir.path().join("l"), Limits::default()), Kind::Usage, "symbolic link");

    symlink("/etc/passwd", here.dir.path().join("link")).unwrap();
    refused(import_path(&here.dir.path().join("link"), SMALL, &mut |_, _| Ok(())), Kind::Usage, "symbolic link");
    refused(import_path(&here.dir.path().join("absent"), SMALL, &mut |_, _| Ok(())), Kind::Usage, "there is no");
}

/// A directory of 1,100 files, which the profile shards; its folder and root.
fn sharded(here: &Store) -> (std::path::PathBuf, Cid) {
    let source = here.dir.path().join("many");
    fs::create_dir(&source).unwrap();
    (0..1100).for_each(|i| fs::write(source.join(long(i)), i.to_string()).unwrap());
    let made = import_path(&source, Profile::V1_2025, &mut |cid, bytes| here.blocks.put_later(&cid, &bytes)).unwrap();
    (source, made.cid)
}

#[test]
fn a_sharded_directory_comes_out_whole_and_a_name_is_found_by_few_blocks() {
    let here = store();
    let (_, root) = sharded(&here);
    let dest = here.dir.path().join("out");
    let bytes = export(&here.blocks, &root, &dest, Limits::default()).unwrap();
    assert_eq!(fs::read_dir(&dest).unwrap().count(), 1100);
    (0..1100).for_each(|i| assert_eq!(fs::read_to_string(dest.join(long(i))).unwrap(), i.to_string()));
    assert_eq!(bytes, (0..1100).map(|i: u32| u64::try_from(i.to_string().len()).unwrap()).sum::<u64>());
    let mut visited = 0;
    find(&here.blocks, &root, &long(7), |_| visited += 1).unwrap().unwrap();
    assert!((1..=3).contains(&visited), "{visited}");
    let limits = Limits { entries_max: 500, ..Limits::default() };
    refused(export(&here.blocks, &root, &here.dir.path().join("few"), limits), Kind::OverLimit, "more than 500 files");
    // A part that is missing is named.
    let Object::Shard(shard) = read(&root, &here.blocks.get(&root).unwrap()).unwrap() else { panic!("no shard") };
    let below = shard.slots.into_iter().find_map(|(_, slot)| match slot {
        Slot::Below(cid) => Some(cid),
        Slot::Entry(_) => None,
    });
    here.blocks.delete(&below.unwrap()).unwrap();
    let missing = below.unwrap().to_string();
    refused(export(&here.blocks, &root, &here.dir.path().join("part"), Limits::default()), Kind::Missing, &missing);
}

/// A shard of a stranger: which slots are taken, their names with the slot's digits, and the number of slots.
fn shard(here: &Store, taken: &[u8], links: &[(&str, Cid)], fanout: u64, hash: u64) -> Cid {
    let mut data = vec![8, 5, 0x12, u8::try_from(taken.len()).unwrap()];
    data.extend_from_slice(taken);
    for (field, value) in [(0x28, hash), (0x30, fanout)] {
        data.push(field);
        leb(value, &mut data);
    }
    let links = links.iter().map(|(name, cid)| Link { cid: *cid, name: (*name).to_owned(), tsize: 0 }).collect();
    here.put_node(&Node { links, data })
}

#[test]
fn shards_that_contradict_themselves_are_refused() {
    let here = store();
    let leaf = here.put_raw(b"leaf");
    let out = here.dir.path().join("out");
    let refuse = |root: Cid, words: &str| {
        refused(export(&here.blocks, &root, &out, Limits::default()), Kind::Corrupt, words);
        assert!(!out.exists());
    };
    // The hash of "a" begins with 0x85, that of "b" with another byte (seen in what the importer makes).
    let good = |name: &str| {
        (0..=255u8).find(|slot| {
            let mut taken = vec![1 << (slot % 8)];
            taken.extend(vec![0; usize::from(slot / 8)]);
            let root = shard(&here, &taken, &[(&format!("{slot:02X}{name}"), leaf)], 256, 0x22);
            Listing::of(&here.blocks, &root).unwrap().all(|entry| entry.is_ok())
        })
    };
    let slot = good("a").expect("a name has one slot");
    let label = format!("{slot:02X}");
    let mut taken = vec![1 << (slot % 8)];
    taken.extend(vec![0; usize::from(slot / 8)]);
    let entry = |name: &str| format!("{label}{name}");

    refuse(shard(&here, &taken, &[(&entry("../up"), leaf)], 256, 0x22), "would leave its directory");
    refuse(shard(&here, &taken, &[(&entry("a"), leaf), (&entry("b"), leaf)], 256, 0x22), "1 slots taken but 2 links");
    refuse(shard(&here, &taken, &[("ZZa", leaf)], 256, 0x22), "is called");
    refuse(shard(&here, &taken, &[(&label, leaf)], 256, 0x22), "leads to a block that is none");
    refuse(shard(&here, &taken, &[(&entry("a"), leaf)], 100, 0x22), "a shard of 100 slots");
    refuse(shard(&here, &taken, &[(&entry("a"), leaf)], 1 << 20, 0x22), "slots; 8 to 1024");
    refuse(shard(&here, &taken, &[(&entry("a"), leaf)], 256, 0x12), "only murmur3");
    refuse(shard(&here, &[1; 33], &[(&entry("a"), leaf)], 256, 0x22), "a field of 33 bytes");
    let mut other = taken.clone();
    other[0] = other[0].rotate_left(1);
    let wrong = format!("{:02X}a", slot / 8 * 8 + (slot % 8 + 1) % 8);
    refuse(shard(&here, &other, &[(&wrong, leaf)], 256, 0x22), "does not belong into part");

    // The right slot one level too deep, a file where a part should be, and a part of nothing.
    let deep = shard(&here, &taken, &[(&entry("a"), leaf)], 256, 0x22);
    refuse(shard(&here, &[1], &[("00", deep)], 256, 0x22), "does not belong into part");
    let plain = here.add(&noise(3000));
    refuse(shard(&here, &taken, &[(&label, plain)], 256, 0x22), "and is none");
    let empty = shard(&here, &[], &[], 256, 0x22);
    refuse(shard(&here, &taken, &[(&label, empty)], 256, 0x22), "an empty part");
    assert_eq!(export(&here.blocks, &empty, &out, Limits::default()).unwrap(), 0);
}

#[test]
fn few_blocks_cannot_pose_as_a_directory_without_end() {
    let here = store();
    // Nine levels of 256 links to the level below: 256^9 paths.
    let mut below = here.add(b"end");
    for _ in 0..9 {
        let names: Vec<String> = (0..256).map(|slot| format!("{slot:02X}")).collect();
        let links: Vec<(&str, Cid)> = names.iter().map(|name| (name.as_str(), below)).collect();
        below = match below.codec() {
            cid::RAW => shard(&here, &[1], &[("00x", below)], 256, 0x22),
            _ => shard(&here, &[0xff; 32], &links, 256, 0x22),
        };
    }
    let dest = here.dir.path().join("out");
    refused(export(&here.blocks, &below, &dest, Limits::default()), Kind::Corrupt, "directory");
    refused(find(&here.blocks, &below, "name", |_| {}), Kind::Corrupt, "hashes are long");
}

/// A file node over `parts` with these claimed sizes.
fn file(parts: &[Cid], sizes: &[u64], total: u64) -> Node {
    let mut data = vec![8, 2, 0x18];
    leb(total, &mut data);
    for size in sizes {
        data.push(0x20);
        leb(*size, &mut data);
    }
    let links = parts.iter().map(|c| Link { cid: *c, name: String::new(), tsize: 0 }).collect();
    Node { links, data }
}

fn leb(mut value: u64, out: &mut Vec<u8>) {
    loop {
        let byte = value.to_le_bytes()[0] & 0x7f;
        value >>= 7;
        out.push(if value == 0 { byte } else { byte | 0x80 });
        if value == 0 {
            return;
        }
    }
}

fn read_back(blocks: &Blocks, root: &Cid) -> store::Result<Vec<u8>> {
    read_file(blocks, root, 1 << 20)
}

#[test]
fn sizes_that_lie_are_refused() {
    let here = store();
    let leaf = here.put_raw(b"leaf");
    let good = here.put_node(&file(&[leaf, leaf], &[4, 4], 8));
    assert_eq!(read_back(&here.blocks, &good).unwrap(), b"leafleaf");
    let total = here.put_node(&file(&[leaf], &[4], 5));
    refused(read_back(&here.blocks, &total), Kind::Corrupt, "another number in its head");
    let part = here.put_node(&file(&[leaf], &[5], 5));
    refused(read_back(&here.blocks, &part), Kind::Corrupt, "its parent says 5");
    let count = here.put_node(&file(&[leaf], &[4, 4], 8));
    refused(read_back(&here.blocks, &count), Kind::Corrupt, "1 parts but 2 sizes");
    let over = here.put_node(&file(&[leaf, leaf], &[u64::MAX, 1], 0));
    refused(read_back(&here.blocks, &over), Kind::Corrupt, "over 64 bits");
    refused(read_file(&here.blocks, &good, 7), Kind::OverLimit, "7 are allowed");
    let dir = directory(&here, &["a"]);
    let inside = here.put_node(&file(&[dir], &[4], 4));
    refused(read_back(&here.blocks, &inside), Kind::Usage, "is a directory");
}

#[test]
fn bombs_of_empty_parts_and_endless_nesting_end_early() {
    let here = store();
    let empty = here.put_raw(b"");
    let bomb = here.put_node(&file(&[empty; 1000], &[0; 1000], 0));
    refused(read_back(&here.blocks, &bomb), Kind::Corrupt, "a part of no bytes");

    let mut deep = here.put_raw(b"x");
    for _ in 0..100 {
        deep = here.put_node(&file(&[deep], &[1], 1));
    }
    refused(read_back(&here.blocks, &deep), Kind::OverLimit, "levels deep");

    let mut nested = directory(&here, &["leaf"]);
    for _ in 0..100 {
        let link = Link { cid: nested, name: "d".into(), tsize: 0 };
        nested = here.put_node(&Node { links: vec![link], data: vec![8, 1] });
    }
    let dest = here.dir.path().join("out");
    refused(export(&here.blocks, &nested, &dest, Limits::default()), Kind::OverLimit, "levels deep");

    // Twenty levels of two names for the same directory: a million entries out of twenty blocks.
    let mut wide = directory(&here, &["leaf"]);
    for _ in 0..20 {
        let link = |name: &str| Link { cid: wide, name: name.into(), tsize: 0 };
        wide = here.put_node(&Node { links: vec![link("a"), link("b")], data: vec![8, 1] });
    }
    let limits = Limits { entries_max: 500, ..Limits::default() };
    refused(export(&here.blocks, &wide, &dest, limits), Kind::OverLimit, "more than 500 files");
    assert!(!dest.exists());
}
