//! What one lane is to compute in one step: a plain value.

use gaterail_kernels::ops::PageCopy;

use crate::kv::PageTable;

/// A token at its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    pub token: u32,
    pub position: u32,
    /// Index into `Batch::tables`.
    pub sequence: u32,
}

/// Rows of any sequences in any number; a sequence's rows stand in ascending positions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub rows: Vec<Row>,
    /// Pages that are copied, one after the other, before anything is computed.
    pub copies: Vec<PageCopy>,
    /// The pages of each sequence.
    pub tables: Vec<Vec<u32>>,
    /// The rows whose logits are wanted.
    pub logits: Vec<u32>,
}

impl Batch {
    /// Adds a sequence's rows from `start` on; logits are wanted where `wants(index)` says so.
    pub fn add(&mut self, tokens: &[u32], start: usize, table: &PageTable, wants: impl Fn(usize) -> bool) {
        assert!(start + tokens.len() <= table.capacity(), "rows without a page");
        let sequence = self.tables.len() as u32;
        self.tables.push(table.pages().to_vec());
        for (index, &token) in tokens.iter().enumerate() {
            if wants(index) {
                self.logits.push(self.rows.len() as u32);
            }
            self.rows.push(Row { token, position: (start + index) as u32, sequence });
        }
    }

    /// The same rows in two batches that take turns, the first half ahead of the second in every layer: a row finds in KV
    /// whatever came before it. What is to be copied has been.
    pub fn halves(&self) -> [Batch; 2] {
        let middle = self.rows.len() / 2;
        let (first, second) = self.rows.split_at(middle);
        let (before, behind): (Vec<u32>, Vec<u32>) =
            self.logits.iter().partition(|row| (**row as usize) < middle);
        let behind = behind.into_iter().map(|row| row - middle as u32).collect();
        let half = |rows: &[Row], logits| Batch {
            rows: rows.to_vec(),
            copies: Vec::new(),
            tables: self.tables.clone(),
            logits,
        };
        [half(first, before), half(second, behind)]
    }
}
