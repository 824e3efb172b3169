//! Files that appear when they are whole: written under another name, synced, renamed, and the folder synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;

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

    /// A folder in it.
    pub fn sub(&self, name: &str) -> Result<Self, Exit> {
        Self::make(&self.0.join(name))
    }

    /// A new file of this name, which takes the place of an older one when it is finished.
    pub fn create(&self, name: &str) -> Result<Output, Exit> {
        let unfinished = self.0.join(format!(".{name}.{}", std::process::id()));
        let file = File::create(&unfinished)
            .with_context(|| format!("can't write {}", unfinished.display()))
            .or_exit(FAILED)?;
        Ok(Output { file, unfinished, folder: self.0.clone(), name: name.to_owned(), finished: false })
    }
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
