use std::fs;
use std::io::{Seek, SeekFrom, Write};

use super::*;

#[tokio::test]
async fn a_fresh_file_gets_tables_and_is_opened_again() {
    let folder = Folder::new();
    let store = folder.open();
    measure(&store, 1, new_result(1)).await.unwrap();
    store.close(Duration::from_secs(5)).await.unwrap();
    let other = folder.other();
    let version: i64 = other.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
    let mode: String = other.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!((version, mode.as_str()), (schema::VERSION as i64, "wal"));
    let store = folder.open();
    assert_eq!(store.reader().latest_revision().await, Ok(1));
    assert!(store.reader().result(&RunId::from_bits(1)).await.unwrap().is_some());
}

#[test]
fn what_cannot_be_opened_is_named_with_a_remedy() {
    let refused = |folder: &Folder, expected: fn(&OpenError) -> bool, remedy: &str| {
        let error = Store::open_with(&folder.file(), quick()).err().unwrap();
        let text = error.to_string();
        assert!(expected(&error), "{error:?}");
        assert!(text.contains(folder.file().to_str().unwrap()) && text.contains(remedy), "{text}");
    };

    let folder = Folder::new();
    drop(folder.open());
    folder.other().pragma_update(None, "user_version", 99).unwrap();
    refused(&folder, |e| matches!(e, OpenError::Newer { found: 99, .. }), "run the newer perfd");

    let folder = Folder::new();
    fs::write(folder.file(), "a text that is long enough to be looked at, and no database\n".repeat(100)).unwrap();
    refused(&folder, |e| matches!(e, OpenError::NotADatabase { .. }), "move it away");

    let folder = Folder::new();
    drop(folder.open());
    let mut file = fs::OpenOptions::new().write(true).open(folder.file()).unwrap();
    file.seek(SeekFrom::Start(100)).unwrap();
    file.write_all(&[0xff; 3000]).unwrap();
    refused(&folder, |e| matches!(e, OpenError::Corrupt { .. }), "restore a backup");

    let folder = Folder::new();
    folder.other().execute_batch("CREATE TABLE another (x)").unwrap();
    refused(&folder, |e| matches!(e, OpenError::Foreign { .. }), "name another file");
    assert_eq!(count(&folder.other(), "sqlite_schema"), 1);

    let folder = Folder::new();
    fs::create_dir(folder.file()).unwrap();
    refused(&folder, |e| matches!(e, OpenError::NotAFile { .. }), "name a file");

    let folder = Folder::new();
    let other = folder.other();
    other.execute_batch("BEGIN EXCLUSIVE; CREATE TABLE another (x)").unwrap();
    refused(&folder, |e| matches!(e, OpenError::Locked { .. }), "stop the other");

    let path = folder.0.path().join("no/such/folder/perfd.db");
    let error = Store::open(&path).err().unwrap();
    assert!(matches!(error, OpenError::NoFolder { .. }) && error.to_string().contains("create it"), "{error}");
}

#[test]
fn an_unwritable_file_is_named_with_owner_and_mode() {
    let folder = Folder::new();
    fs::write(folder.file(), "").unwrap();
    let error = connection::not_writable(&folder.file(), &folder.file()).to_string();
    let user = nix::unistd::geteuid();
    assert!(error.contains(&format!("belongs to user {user} ")) && error.contains("mode 06"), "{error}");
    assert!(error.contains(&format!("chown {user} {}", folder.file().display())), "{error}");
}
