//! The few types of ZooKeeper's serialization ("jute") that its transaction log and its protocol are made of.

/// Reads values from the front of a slice; `None` when it is too short or holds something else.
pub(crate) struct Input<'a>(pub(crate) &'a [u8]);

impl<'a> Input<'a> {
    pub(crate) fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(bytes)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }

    pub(crate) fn int(&mut self) -> Option<i32> {
        self.array().map(i32::from_be_bytes)
    }

    pub(crate) fn long(&mut self) -> Option<i64> {
        self.array().map(i64::from_be_bytes)
    }

    /// Bytes after their length; a length of -1 stands for null, here the same as empty.
    pub(crate) fn buffer(&mut self) -> Option<&'a [u8]> {
        let length = self.int()?.max(0);
        self.bytes(usize::try_from(length).ok()?)
    }

    pub(crate) fn string(&mut self) -> Option<String> {
        self.buffer().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

/// Collects values.
#[derive(Default)]
pub(crate) struct Output(pub(crate) Vec<u8>);

impl Output {
    pub(crate) fn int(mut self, value: i32) -> Output {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn long(mut self, value: i64) -> Output {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub(crate) fn buffer(self, bytes: &[u8]) -> Output {
        let mut output = self.int(length(bytes.len()));
        output.0.extend(bytes);
        output
    }

    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Output {
        self.0.extend(bytes);
        self
    }
}

/// A length as the formats have it.
pub(crate) fn length(length: usize) -> i32 {
    i32::try_from(length).expect("nothing here is as long as 2 GB")
}
