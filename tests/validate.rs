//! `perfd validate`, as somebody types it: what it prints of good and of spoilt files, and how it ends.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use liblzma::write::XzEncoder;

const LINE: &str = "SOURCE=op FILESIZE=51200 START=1795305600.0 SOCKET=0.0 CONNECT=0.0 NEGOTIATE=0.0 REQUEST=0.0 \
    RESPONSE=0.0 DATAREQUEST=0.0 DATARESPONSE=0.0 DATACOMPLETE=0.0 WRITEBYTES=0 READBYTES=0 DIDTIMEOUT=1";
const RECORDED: &str = include_str!("recorded/onionperf-3.1.analysis.json");
const DATA: &str = "1338357901 42336 1338357901 42369 1338357901 42464 1338357901 42589 1338357901 42646 \
    1338357901 43234 1338357901 43298 1338357901 893410 1338357902 500000 75 51416 0\n";

/// Runs it in this folder; gives the exit code, and what it printed.
fn validate(folder: &Path, args: &[&str], stdin: &[u8]) -> (i32, String, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_perfd"))
        .arg("validate")
        .args(args)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(stdin).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    files.iter().for_each(|(name, bytes)| std::fs::write(folder.path().join(name), bytes).unwrap());
    folder
}

fn packed(text: &str) -> Vec<u8> {
    let mut encoder = XzEncoder::new(Vec::new(), 6);
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn good_files_of_every_form_pass() {
    let torperf = format!("@type torperf 1.1\n{LINE}\n");
    let analysis = packed(RECORDED);
    let folder = folder(&[
        ("op-51200-2026-11-22.tpf", torperf.as_bytes()),
        ("2026-11-24.onionperf.analysis.json.xz", &analysis),
        ("50kb.data", DATA.as_bytes()),
        ("50kb.extradata", b"CIRC_ID=1 USED_AT=1338357902.6\n"),
    ]);
    let files = ["op-51200-2026-11-22.tpf", "2026-11-24.onionperf.analysis.json.xz", "50kb.data", "50kb.extradata"];
    let told = "op-51200-2026-11-22.tpf: 1 result\n\
        2026-11-24.onionperf.analysis.json.xz: 2 results\n\
        50kb.data: 1 result\n\
        50kb.extradata: 0 results\n";
    let args = [&["--collector"], &files[..]].concat();
    assert_eq!(validate(folder.path(), &args, b""), (0, told.to_owned(), String::new()));
    assert_eq!(validate(folder.path(), &["-"], torperf.as_bytes()), (0, "-: 1 result\n".to_owned(), String::new()));
    assert_eq!(validate(folder.path(), &["-"], &analysis).0, 0);
}

#[test]
fn departures_are_told_by_line_and_rule() {
    let spoilt = LINE.replace("START=1795305600.0", "START=1795305600").replace("op", "po");
    let other =
        LINE.replace("SOURCE=op", "SOURCE=po").replace("51200", "51201").replace("1795305600.0", "1795305599.9");
    let torperf = format!("@type torperf 1.1\n{LINE}\n{spoilt}\n{other}\n\u{1b}[2J\n");
    let folder = folder(&[
        ("op-51200-2026-11-22.tpf", torperf.as_bytes()),
        ("x.json", RECORDED.replace("\"usecs-to-first-byte-recv\": \"52931\",", "").as_bytes()),
        ("y.json", RECORDED.replacen("\"testnode\": {", "\"test node\": {", 1).as_bytes()),
        ("empty.json", br#"{"type":"onionperf","version":"3.1","data":{}}"#),
        ("50kb.extradata", b"CIRC_ID=1  USED_AT=1338357902.6\n"),
    ]);
    let (code, told, _) = validate(folder.path(), &["op-51200-2026-11-22.tpf"], b"");
    let expected = [
        "op-51200-2026-11-22.tpf:3: timestamp: START is \"1795305600\", not decimal seconds since 1970 with one point, \
         such as 1493397365.93, or 0.0",
        "op-51200-2026-11-22.tpf:4: name-source: SOURCE is \"po\", and the file is named for \"op\"",
        "op-51200-2026-11-22.tpf:4: name-size: FILESIZE is 51201, and the file is named for 51200",
        "op-51200-2026-11-22.tpf:4: name-date: START is 2026-11-21T23:59:59.900000Z, and the file is named for 2026-11-22",
        "op-51200-2026-11-22.tpf:5: control-character: the line holds the control character '\\u{1b}'",
        "op-51200-2026-11-22.tpf: 2 results, 5 violations",
    ];
    assert_eq!((code, told.lines().collect::<Vec<_>>()), (65, expected.to_vec()));

    let (code, told, _) = validate(folder.path(), &["x.json"], b"");
    assert_eq!(code, 0, "{told}");
    let name = "x.json: warning: file-name: CollecTor takes only files named YYYY-MM-DD.onionperf.analysis.json.xz, packed by xz\n";
    let lack = "x.json:data.testnode.tgen.streams[\"0:6:localhost:127.0.0.1:39386:localhost:127.0.0.1:8080\"].time_info\
        .usecs-to-first-byte-recv: warning: first-byte: OnionPerf's own plots need the time of the first byte\n";
    assert_eq!(told, format!("{name}{lack}x.json: 2 results, 2 warnings\n"));
    let (code, told, _) = validate(folder.path(), &["--collector", "x.json"], b"");
    assert_eq!((code, told.lines().next()), (65, Some(&*name.trim_end().replace("warning: ", ""))));

    for (file, line) in [
        ("y.json", "y.json:data[\"test node\"]: nick: a nickname is letters, digits and hyphens"),
        ("empty.json", "empty.json: no-measurement: it holds no measurement; a day without any must not be given out"),
        ("50kb.extradata", "50kb.extradata:1: space: one space stands between pairs, and none at the ends"),
    ] {
        let (code, told, _) = validate(folder.path(), &[file], b"");
        assert_eq!((code, told.lines().any(|told| told == line)), (65, true), "{told}");
    }
}

#[test]
fn of_many_departures_a_hundred_are_shown() {
    let torperf = "@type torperf 1.1\n".to_owned() + &"x\n".repeat(250);
    let (code, told, _) = validate(Path::new("."), &["-"], torperf.as_bytes());
    assert_eq!((code, told.lines().count()), (65, 101));
    assert_eq!(told.lines().last(), Some("-: 0 results, 250 violations of which 100 are shown"));
}

#[test]
fn what_can_not_be_opened_is_said_beside_the_others() {
    let folder = folder(&[("good.tpf", format!("@type torperf 1.0\n{LINE}\n").as_bytes())]);
    let (code, told, said) = validate(folder.path(), &["gone.tpf", "good.tpf"], b"");
    assert_eq!(code, 66);
    assert!(said.starts_with("perfd: gone.tpf can't be opened: "), "{said}");
    assert!(told.ends_with("good.tpf: 1 result, 1 warning\n"), "{told}");
    assert_eq!(validate(folder.path(), &["-"], b"hello\n").0, 65);
    assert_eq!(validate(folder.path(), &["."], b"").0, 65);
}
