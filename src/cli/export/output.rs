//! Files that appear when they are whole: written under another name, synced, renamed, and the folder synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, anyhow};

use crate::cli::exit::{Exit, FAILED, OrExit};

/// A folder to write to.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

/// A file that is being written; dropped before its end, it leaves nothing.
pub struct Output {
    file: File,
    unfinished: PathBuf,
    folder: PathBuf,
    name: String,
    finished: bool,
}

impl Folder {
    /// This folder, made if it is missing.
    pub fn make(path: &Path) -> Result<Self, Exit> {
        fs::create_dir_all(path)
            .with_context(|| format!("can't make the folder {}", path.display()))
            .or_exit(FAILED)?;
        Ok(Folder(path.to_owned()))
    }

    /// A folder in it, of this name; an error if the name leads out of it, or deeper into it.
    pub fn sub(&self, name: &str) -> Result<Self, Exit> {
        check_plain(name)?;
        Self::make(&self.0.join(name))
    }

    /// A new file of this name, which takes the place of an older one when it is finished; an error if the name leads
    /// out of the folder, or deeper into it.
    pub fn create(&self, name: &str) -> Result<Output, Exit> {
        check_plain(name)?;
        let unfinished = self.0.join(format!(".{name}.{}", std::process::id()));
        let file = File::create(&unfinished)
            .with_context(|| format!("can't write {}", unfinished.display()))
            .or_exit(FAILED)?;
        Ok(Output { file, unfinished, folder: self.0.clone(), name: name.to_owned(), finished: false })
    }
}

/// What a file of somebody else said may not choose where is written.
fn check_plain(name: &str) -> Result<(), Exit> {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(part)), None) if part == name);
    if plain && !name.contains('\0') {
        return Ok(());
    }
    Err(anyhow!("{name:?} can't be the name of a file or folder; nothing is written under it")).or_exit(FAILED)
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Output {
    /// Writes these bytes.
    pub fn put(&mut self, bytes: impl AsRef<[u8]>) -> Result<(), Exit> {
        let written = self.file.write_all(bytes.as_ref());
        written.with_context(|| format!("can't write {}", self.unfinished.display())).or_exit(FAILED)
    }

    /// Makes it appear.
    pub fn finish(mut self) -> Result<(), Exit> {
        let path = self.folder.join(&self.name);
        let appear = || -> io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&self.unfinished, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        appear().with_context(|| format!("can't write {}", path.display())).or_exit(FAILED)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.finished {
            // What can't be removed stays, under a name that says what it is.
            let _ = fs::remove_file(&self.unfinished);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_written_outside_the_folder() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::make(&dir.path().join("out")).unwrap();
        let absolute = dir.path().join("abs").display().to_string();
        for name in ["", ".", "..", "../a", "a/b", "a/", "./a", "/", "a\0b", &absolute] {
            assert_eq!(folder.sub(name).err().map(|exit| exit.code), Some(FAILED), "{name:?}");
            assert_eq!(folder.create(name).err().map(|exit| exit.code), Some(FAILED), "{name:?}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(dir.path().join("out")).unwrap().count(), 0);
        folder.sub("op-nl").unwrap().create("2026-11-22.json").unwrap().finish().unwrap();
        assert!(dir.path().join("out/op-nl/2026-11-22.json").is_file());
    }
}
