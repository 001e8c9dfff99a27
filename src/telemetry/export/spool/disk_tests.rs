use super::*;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, UNIX_EPOCH};
use tempfile::TempDir;

const ROOMY: u64 = 1 << 30;

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

fn open(folder: &TempDir) -> Spool {
    Spool::open(folder.path(), ROOMY).expect("usable")
}

/// Its number is its points, its time and its content.
fn entry(number: usize) -> (Batch, SystemTime) {
    let bytes = format!("request {number}").into();
    (Batch { bytes, points: number }, UNIX_EPOCH + Duration::from_secs(number as u64))
}

fn append(spool: &mut Spool, numbers: impl IntoIterator<Item = usize>) {
    let entries: Vec<_> = numbers.into_iter().map(entry).collect();
    spool.append(entries.iter().map(|(batch, at)| (batch, *at)), false).expect("room");
}

/// Reads everything that was not read.
fn read(spool: &mut Spool) -> Vec<usize> {
    let mut numbers = vec![];
    while spool.has_unread() {
        for kept in spool.load(30).entries {
            assert_eq!((kept.batch.clone(), kept.collected), entry(kept.batch.points));
            numbers.push(kept.batch.points);
        }
    }
    numbers
}

fn names(folder: &TempDir) -> Vec<String> {
    let files = fs::read_dir(folder.path()).expect("a folder").flatten();
    let mut names: Vec<_> = files.map(|file| file.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn segments(folder: &TempDir) -> Vec<PathBuf> {
    let names = names(folder).into_iter().filter(|name| name.ends_with(".segment"));
    names.map(|name| folder.path().join(name)).collect()
}

/// Three segments: 1 and 2; 3, 4 and 5; 6.
fn three_segments(folder: &TempDir) {
    for numbers in [1..=2, 3..=5, 6..=6] {
        append(&mut open(folder), numbers);
    }
    assert_eq!(segments(folder).len(), 3);
}

fn entry_length(bytes: &[u8]) -> u64 {
    EntryHead::of_bytes(bytes).expect("an entry").length()
}

fn edit(path: &Path, edit: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("readable");
    edit(&mut bytes);
    fs::write(path, bytes).expect("writable");
}

#[test]
fn what_was_appended_is_read_in_order_also_by_the_next_process() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, [1, 2, 3]);
    assert_eq!((spool.unread_points(), spool.oldest_unread()), (6, Some((0, entry(1).1))));
    assert_eq!(spool.load(1).entries.len(), 1);
    assert_eq!(spool.unread_points(), 5);
    append(&mut spool, [4]);
    drop(spool);
    let mut next = open(&folder);
    append(&mut next, [5]);
    assert_eq!(next.unread_points(), 15, "nothing was dealt with");
    assert_eq!(read(&mut next), [1, 2, 3, 4, 5]);
    assert!(!next.has_unread() && next.unread_points() == 0 && next.oldest_unread().is_none());
}

#[test]
fn what_was_dealt_with_is_gone_also_for_the_next_process() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, [1, 2, 3]);
    let third = spool.load(1000).entries[2].sequence;
    spool.settle(Some(third)).expect("written");
    drop(spool);
    let mut next = open(&folder);
    assert_eq!((next.unread_points(), read(&mut next)), (3, vec![3]));
    next.settle(None).expect("written");
    assert_eq!((segments(&folder).len(), next.bytes()), (0, 0));
    append(&mut next, [7]);
    drop(next);
    assert_eq!(read(&mut open(&folder)), [7], "the order goes on behind the cursor");
}

#[test]
fn without_its_cursor_everything_that_is_there_is_read() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, [1, 2]);
    let second = spool.load(1000).entries[1].sequence;
    spool.settle(Some(second)).expect("written");
    drop(spool);
    fs::write(folder.path().join("cursor"), "garbage").expect("writable");
    assert_eq!(read(&mut open(&folder)), [1, 2]);
}

#[test]
fn a_new_spool_says_that_nothing_was_sent() {
    let folder = folder();
    drop(open(&folder));
    assert_eq!(names(&folder), ["cursor", "format", "lock"], "so that one without a cursor has lost it");
}

#[test]
fn a_hundred_thousand_segments_are_read_like_three() {
    const MANY: usize = 100_000;
    let folder = folder();
    drop(open(&folder));
    let mut packer = Packer::new().expect("zstd");
    for number in 0..MANY {
        let first = number as Sequence;
        let mut bytes = SegmentHead { first }.to_bytes();
        let (batch, at) = entry(number);
        packer.pack(&mut bytes, first, &batch, at).expect("small");
        fs::write(folder.path().join(format!("{first:020}.segment")), bytes).expect("writable");
    }
    let mut spool = open(&folder);
    assert_eq!(spool.unread_points(), MANY * (MANY - 1) / 2);
    assert_eq!(spool.drop_oldest().0, 0, "the first one has none");
    let loaded = spool.load(1 << 20);
    let next = loaded.entries.last().expect("some").sequence + 1;
    assert_eq!(loaded.entries[0].sequence, 1);
    spool.settle(Some(next)).expect("written");
    append(&mut spool, [MANY]);
    drop(spool);
    let mut spool = open(&folder);
    assert_eq!(read(&mut spool), (next as usize..=MANY).collect::<Vec<_>>());
    spool.settle(None).expect("written");
    assert!(segments(&folder).is_empty());
}

#[test]
fn segments_do_not_grow_for_ever() {
    let folder = folder();
    let mut spool = Spool::open(folder.path(), 16 * 100).expect("usable");
    for number in 1..=9 {
        append(&mut spool, [number]);
    }
    assert!(segments(&folder).len() >= 4, "{:?}", names(&folder));
    assert_eq!(spool.drop_oldest().0, 1 + 2);
    assert_eq!(read(&mut spool), [3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn an_entry_that_was_not_written_to_its_end_never_was() {
    let folder = folder();
    append(&mut open(&folder), [1, 2, 3]);
    let segment = &segments(&folder)[0];
    let whole = fs::read(segment).expect("readable");
    for cut in 1..55 {
        fs::write(segment, &whole[..whole.len() - cut]).expect("writable");
        let mut spool = open(&folder);
        assert_eq!(read(&mut spool), [1, 2], "{cut} bytes are missing");
        assert_eq!(spool.damaged(), 0);
    }
    // Zeros instead, as some file systems leave them after a loss of power.
    fs::write(segment, [&whole[..], &[0; 5000]].concat()).expect("writable");
    append(&mut open(&folder), [4]);
    assert_eq!(read(&mut open(&folder)), [1, 2, 3, 4]);
}

#[test]
fn damage_costs_what_it_touches_and_is_put_aside() {
    let folder = folder();
    three_segments(&folder);
    let middle = segments(&folder)[1].clone();
    // In the request of the first, of three.
    edit(&middle, |bytes| bytes[SegmentHead::LENGTH + EntryHead::LENGTH + 3] ^= 1);
    let mut spool = open(&folder);
    let Loaded { entries, damaged_points } = spool.load(1000);
    assert_eq!(entries.iter().map(|kept| kept.batch.points).collect::<Vec<_>>(), [1, 2, 4, 5, 6]);
    assert_eq!(damaged_points, 3, "counted");
    spool.settle(None).expect("written");
    assert_eq!(spool.damaged(), 1);
    let aside: Vec<_> = names(&folder).into_iter().filter(|name| name.ends_with(".damaged")).collect();
    assert_eq!((aside.len(), segments(&folder).len()), (1, 0));
}

#[test]
fn behind_a_damaged_head_the_next_entry_is_found() {
    let folder = folder();
    three_segments(&folder);
    edit(&segments(&folder)[1], |bytes| bytes[SegmentHead::LENGTH + 10] ^= 1);
    let mut spool = open(&folder);
    assert_eq!(spool.unread_points(), 1 + 2 + 4 + 5 + 6);
    assert_eq!(read(&mut spool), [1, 2, 4, 5, 6]);
}

#[test]
fn a_segment_that_is_none_does_not_keep_the_others_from_being_read() {
    for content in [&b""[..], b"otlpspl\n", &[0; 4096], b"{\"json\": true}"] {
        let folder = folder();
        three_segments(&folder);
        fs::write(&segments(&folder)[1], content).expect("writable");
        let mut spool = open(&folder);
        assert_eq!((spool.damaged(), read(&mut spool)), (1, vec![1, 2, 6]));
    }
    let folder = folder();
    three_segments(&folder);
    let middle = segments(&folder)[1].clone();
    fs::remove_file(&middle).expect("there");
    fs::create_dir(&middle).expect("writable");
    assert_eq!(read(&mut open(&folder)), [1, 2, 6]);
}

#[test]
fn a_segment_that_vanishes_costs_its_own_points() {
    let folder = folder();
    three_segments(&folder);
    let mut spool = open(&folder);
    fs::remove_file(&segments(&folder)[1]).expect("there");
    let Loaded { entries, damaged_points } = spool.load(1000);
    assert_eq!((entries.len(), damaged_points), (3, 12));
}

#[test]
fn damage_that_came_after_it_was_counted_is_counted_exactly() {
    let folder = folder();
    three_segments(&folder);
    let mut spool = open(&folder);
    // The head of the second of three: what follows it is found.
    let paths = segments(&folder);
    let whole = fs::read(&paths[1]).expect("readable");
    let second = SegmentHead::LENGTH as u64 + entry_length(&whole[SegmentHead::LENGTH..]);
    edit(&paths[1], |bytes| bytes[usize::try_from(second).unwrap() + 10] ^= 1);
    // And one after which nothing is found.
    edit(&paths[2], |bytes| bytes[SegmentHead::LENGTH + 10] ^= 1);
    let Loaded { entries, damaged_points } = spool.load(1000);
    assert_eq!(entries.iter().map(|kept| kept.batch.points).collect::<Vec<_>>(), [1, 2, 3, 5]);
    assert_eq!((damaged_points, spool.unread_points()), (4 + 6, 0));
}

#[test]
fn only_the_newest_damaged_segments_are_kept() {
    let folder = folder();
    for number in 1..=5 {
        append(&mut open(&folder), [number]);
        fs::write(segments(&folder).pop().expect("one"), "garbage").expect("writable");
    }
    drop(open(&folder));
    drop(open(&folder));
    assert_eq!(names(&folder).iter().filter(|name| name.ends_with(".damaged")).count(), 2);
}

#[test]
fn two_processes_do_not_share_a_spool() {
    let folder = folder();
    let first = open(&folder);
    let error = Spool::open(folder.path(), ROOMY).expect_err("in use").to_string();
    assert!(error.starts_with("the spool is in use by another process: "), "{error}");
    drop(first);
    open(&folder);
}

#[test]
fn a_folder_of_something_else_is_left_alone() {
    let folder = folder();
    fs::create_dir(folder.path().join("lost+found")).expect("writable");
    drop(open(&folder));
    let other = self::folder();
    fs::write(other.path().join("photo.jpg"), "a photo").expect("writable");
    let error = Spool::open(other.path(), ROOMY).expect_err("not ours").to_string();
    assert!(error.contains("is no spool, \"photo.jpg\" lies in it: name an empty folder"), "{error}");
    assert_eq!(names(&other), ["photo.jpg"]);
    fs::write(other.path().join("format"), "jpeg").expect("writable");
    assert!(Spool::open(other.path(), ROOMY).is_err());
}

#[test]
fn a_spool_of_another_version_is_refused_and_left_as_it_is() {
    let folder = folder();
    append(&mut open(&folder), [1]);
    fs::write(folder.path().join("format"), "esxi-otel-agent spool 2\n").expect("writable");
    let before = names(&folder);
    let error = Spool::open(folder.path(), ROOMY).expect_err("newer").to_string();
    assert!(error.starts_with("the spool has format 2, this version knows 1"), "{error}");
    assert_eq!(names(&folder), before);
}

#[test]
fn a_spool_of_another_user_is_refused() {
    let folder = folder();
    append(&mut open(&folder), [1]);
    let ours = rustix::process::geteuid();
    if !ours.is_root() {
        return; // Only root can give files away.
    }
    std::os::unix::fs::chown(folder.path().join("format"), Some(4711), None).expect("root may");
    let error = Spool::open(folder.path(), ROOMY).expect_err("another's").to_string();
    assert!(error.starts_with("the spool belongs to user 4711, this process runs as user 0"), "{error}");
}

#[test]
fn what_is_kept_is_private() {
    let parent = folder();
    let path = parent.path().join("a/spool");
    append(&mut Spool::open(&path, ROOMY).expect("made"), [1]);
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in fs::read_dir(&path).expect("a folder").flatten() {
        assert_eq!(mode(&file.path()), 0o600, "{:?}", file.path());
    }
}

#[test]
fn a_write_that_fails_leaves_what_was_there_and_can_be_repeated() {
    let folder = folder();
    let mut spool = open(&folder);
    append(&mut spool, [1]);
    // A handle that can't write, in place of a disk that doesn't.
    spool.open = Some(File::open(&segments(&folder)[0]).expect("readable"));
    let (batch, at) = entry(2);
    let error = spool.append([(&batch, at)], false).expect_err("refused").to_string();
    assert!(error.starts_with("the spool can't be written: "), "{error}");
    append(&mut spool, [2]);
    assert_eq!(segments(&folder).len(), 2, "nothing more goes to a file that has failed");
    drop(spool);
    assert_eq!(read(&mut open(&folder)), [1, 2]);
}
