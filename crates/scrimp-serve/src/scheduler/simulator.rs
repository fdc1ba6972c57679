//! Property test of the scheduler: random requests, lengths and cancellations on a simulated block pool that counts references.

use super::{
    KvMemory, Limits, RequestId, Scheduler, SchedulerOutput,
    prefix::{BLOCK_SIZE, PrefixCache},
};
use scrimp_base::SplitMix64;
use std::collections::{BTreeMap, BTreeSet};

/// The block table of a request.
#[derive(Debug, Clone, Default)]
struct Table {
    blocks: Vec<usize>,
    /// Tokens in the blocks. Compression makes them fewer than `position`.
    held: usize,
    /// Computed tokens.
    position: usize,
}

struct Memory {
    /// Reference count of each block.
    owners: Vec<usize>,
    tables: BTreeMap<RequestId, Table>,
    cached: PrefixCache<Table>,
    texts: BTreeMap<RequestId, Vec<u32>>,
    may_compress: bool,
}

impl Memory {
    fn new(blocks: usize, may_compress: bool) -> Self {
        Self {
            owners: vec![0; blocks],
            tables: BTreeMap::new(),
            cached: PrefixCache::new(4),
            texts: BTreeMap::new(),
            may_compress,
        }
    }

    fn drop_table(&mut self, table: &Table) {
        table.blocks.iter().for_each(|&block| self.owners[block] -= 1);
    }

    fn take(&mut self) -> usize {
        let free = self.owners.iter().position(|&n| n == 0).expect("the scheduler made room");
        self.owners[free] = 1;
        free
    }

    /// Appends tokens as the engine does: a shared last block is copied.
    fn append(&mut self, id: RequestId, tokens: usize) {
        let mut table = self.tables.remove(&id).expect("a table");
        if !table.held.is_multiple_of(BLOCK_SIZE) {
            let last = *table.blocks.last().expect("a block");
            if self.owners[last] > 1 {
                let copy = self.take();
                self.owners[last] -= 1;
                *table.blocks.last_mut().expect("a block") = copy;
            }
        }
        table.held += tokens;
        table.position += tokens;
        while table.blocks.len() < table.held.div_ceil(BLOCK_SIZE) {
            let block = self.take();
            table.blocks.push(block);
        }
        self.tables.insert(id, table);
    }

    /// Caches a fork of a request's table.
    fn cache(&mut self, id: RequestId) {
        let table = self.tables[&id].clone();
        if table.held != table.position {
            return;
        }
        table.blocks.iter().for_each(|&block| self.owners[block] += 1);
        let text = self.texts[&id][..table.position].to_vec();
        self.cached.insert(0, &text, 0, table);
        self.recount();
    }

    /// Recounts references after the prefix cache evicted entries.
    fn recount(&mut self) {
        let mut owners = vec![0; self.owners.len()];
        let tables = self.tables.values().chain(self.cached.snapshots());
        tables.flat_map(|table| &table.blocks).for_each(|&block| owners[block] += 1);
        self.owners = owners;
    }

    /// Every reference count equals the number of tables with the block.
    fn check(&self) {
        let mut owners = vec![0; self.owners.len()];
        for table in self.tables.values().chain(self.cached.snapshots()) {
            assert_eq!(table.blocks.len(), table.held.div_ceil(BLOCK_SIZE));
            table.blocks.iter().for_each(|&block| owners[block] += 1);
        }
        assert_eq!(owners, self.owners, "reference counts");
    }
}

impl KvMemory for Memory {
    fn available(&self) -> usize {
        self.owners.iter().filter(|&&n| n == 0).count()
    }

    fn growth(&self, id: RequestId, tokens: usize) -> usize {
        let table = &self.tables[&id];
        let copy =
            !table.held.is_multiple_of(BLOCK_SIZE) && self.owners[*table.blocks.last().expect("a block")] > 1;
        (table.held + tokens).div_ceil(BLOCK_SIZE) - table.blocks.len() + usize::from(copy)
    }

    fn allocate(&mut self, id: RequestId) -> usize {
        assert!(!self.tables.contains_key(&id), "a second table");
        let text = &self.texts[&id];
        let mut table = Table::default();
        if let Some(hit) = self.cached.find(0, text, text.len() - 1) {
            table.blocks = hit.snapshot.blocks[..hit.tokens.div_ceil(BLOCK_SIZE)].to_vec();
            (table.held, table.position) = (hit.tokens, hit.tokens);
        }
        table.blocks.iter().for_each(|&block| self.owners[block] += 1);
        let cached = table.position;
        self.tables.insert(id, table);
        cached
    }

    fn free(&mut self, id: RequestId) {
        let table = self.tables.remove(&id).expect("a table to free");
        self.drop_table(&table);
    }

    fn evict_cached(&mut self) -> bool {
        let evicted = self.cached.evict();
        self.recount();
        evicted
    }

    fn compress(&mut self, id: RequestId) -> bool {
        let table = self.tables[&id].clone();
        if !self.may_compress || table.held < 4 * BLOCK_SIZE {
            return false;
        }
        self.drop_table(&table);
        let mut small = Table { held: table.held / 2, ..table };
        small.blocks.truncate(small.held.div_ceil(BLOCK_SIZE));
        small.blocks.iter().for_each(|&block| self.owners[block] += 1);
        self.tables.insert(id, small);
        true
    }

    fn num_tokens(&self, id: RequestId) -> usize {
        self.tables[&id].held
    }
}

/// Number of requests by their end, and of preemptions.
#[derive(Debug, Default)]
struct Counts {
    finished: usize,
    cancelled: usize,
    rejected: usize,
    preemptions: usize,
}

/// A scheduler under random load.
struct Simulation {
    seed: u64,
    random: SplitMix64,
    limits: Limits,
    memory: Memory,
    scheduler: Scheduler,
    /// Tokens that each request still generates.
    answers: BTreeMap<RequestId, usize>,
    submitted: usize,
    counts: Counts,
}

impl Simulation {
    fn new(seed: u64, may_compress: bool) -> Self {
        let mut random = SplitMix64::new(seed);
        let mut below = |n: u64| random.below(n) as usize;
        let limits = Limits {
            max_num_seqs: 1 + below(6),
            max_num_batched_tokens: 64 + below(200),
            max_prefill_with_decode: 1 + below(64),
            max_waiting: 1000,
            separate_ends: below(2) == 0,
        };
        let blocks = 6 + below(20);
        Self {
            seed,
            limits,
            memory: Memory::new(blocks, may_compress),
            scheduler: Scheduler::new(limits),
            answers: BTreeMap::new(),
            submitted: 0,
            counts: Counts::default(),
            random,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        self.random.below(n as u64) as usize
    }

    /// Runs `count` requests to their end.
    fn run(mut self, count: usize) -> Counts {
        let mut idle_steps = 0;
        for step in 0.. {
            let seed = self.seed;
            assert!(step < 200 * count + 5000, "seed {seed}: requests do not end: {:?}", self.scheduler);
            if self.submitted < count && (self.scheduler.is_idle() || self.below(3) == 0) {
                self.submit();
            }
            if self.below(40) == 0 {
                self.cancel();
            }
            self.memory.check();
            let output = self.scheduler.schedule(&mut self.memory);
            self.memory.check();
            self.counts.preemptions += output.preempted.len();
            for id in &output.rejected {
                self.answers.remove(id);
                self.counts.rejected += 1;
            }
            self.check_limits(&output);
            // While there are requests, some step soon has work.
            let idle = output.scheduled.is_empty() && !self.scheduler.is_idle();
            idle_steps = if idle { idle_steps + 1 } else { 0 };
            assert!(idle_steps < 3, "seed {seed}: nothing runs");
            for (id, tokens) in output.scheduled {
                self.compute(id, tokens);
            }
            self.memory.check();
            if self.submitted == count && self.scheduler.is_idle() {
                break;
            }
        }
        // No block leaks.
        assert!(self.memory.tables.is_empty());
        while self.memory.evict_cached() {}
        assert_eq!(self.memory.available(), self.memory.owners.len());
        self.counts
    }

    /// Adds a request that shares a prefix with others of its family.
    fn submit(&mut self) {
        let id = self.submitted as RequestId;
        let (family, n) = (self.below(3) as u32, 1 + self.below(500));
        let token = |i| if i < 200 { i + family } else { i * 31 + id as u32 };
        self.memory.texts.insert(id, (0..n as u32).map(token).collect());
        let (answer_tokens, client) = (1 + self.below(40), self.below(4) as u64);
        self.answers.insert(id, answer_tokens);
        assert!(self.scheduler.add_request(id, client, n));
        self.submitted += 1;
    }

    /// Cancels a request, if there is one.
    fn cancel(&mut self) {
        let nth = self.below(self.answers.len().max(1));
        if let Some(&id) = self.answers.keys().nth(nth) {
            self.scheduler.remove_request(id, &mut self.memory);
            self.answers.remove(&id);
            self.counts.cancelled += 1;
        }
    }

    /// The step keeps within the limits and contains each request once.
    fn check_limits(&self, output: &SchedulerOutput) {
        let (limits, scheduled) = (&self.limits, &output.scheduled);
        let running = self.scheduler.running();
        assert!(scheduled.len() <= limits.max_num_seqs && running.len() <= limits.max_num_seqs);
        let chunks: Vec<usize> = scheduled.iter().map(|s| s.1).filter(|&n| n > 1).collect();
        let one_block = matches!(chunks[..], [n] if n <= BLOCK_SIZE);
        assert!(one_block || scheduled.iter().map(|s| s.1).sum::<usize>() <= limits.max_num_batched_tokens);
        let ids: BTreeSet<_> = scheduled.iter().map(|s| s.0).collect();
        assert_eq!(ids.len(), scheduled.len());
        assert!(scheduled.iter().all(|s| s.1 > 0 && running.contains(&s.0)));
    }

    /// Computes `tokens` tokens of a request and, after the last one, generates the next.
    fn compute(&mut self, id: RequestId, tokens: usize) {
        let before = self.memory.tables[&id].position;
        self.memory.append(id, tokens);
        assert!(before + tokens <= self.memory.texts[&id].len());
        if !self.scheduler.update_computed(id, tokens) {
            return;
        }
        if self.below(2) == 0 {
            self.memory.cache(id);
        }
        let left = self.answers.get_mut(&id).expect("a running request");
        *left -= 1;
        if *left == 0 {
            self.answers.remove(&id);
            self.scheduler.remove_request(id, &mut self.memory);
            self.counts.finished += 1;
        } else {
            self.memory.texts.get_mut(&id).expect("a text").push(7);
            self.scheduler.append_token(id);
        }
    }
}

#[test]
fn all_requests_end_and_all_blocks_are_freed() {
    let mut all = [0; 4];
    for seed in 0..300 {
        let counts = Simulation::new(seed, seed % 2 == 0).run(40);
        let ends = [counts.finished, counts.cancelled, counts.rejected];
        assert_eq!(ends.iter().sum::<usize>(), 40, "seed {seed}");
        for (sum, n) in all.iter_mut().zip([&ends[..], &[counts.preemptions]].concat()) {
            *sum += n;
        }
    }
    assert!(all.iter().all(|&n| n > 50), "some event never happened: {all:?}");
}

#[test]
fn decode_continues_during_a_long_prefill() {
    let limits = Limits { max_prefill_with_decode: 100, ..Limits::default() };
    let mut memory = Memory::new(200, false);
    let mut scheduler = Scheduler::new(limits);
    for (id, n) in [(0, 10), (1, 1000)] {
        memory.texts.insert(id, vec![id as u32; n]);
        assert!(scheduler.add_request(id, 0, n));
    }
    let output = scheduler.schedule(&mut memory);
    assert_eq!(output.scheduled, [(0, 10), (1, 448)]);
    for (id, n) in output.scheduled {
        memory.append(id, n);
        assert_eq!(scheduler.update_computed(id, n), id == 0);
    }
    scheduler.append_token(0);
    let output = scheduler.schedule(&mut memory);
    assert_eq!(output.scheduled, [(0, 1), (1, 64)]);
    for (id, n) in output.scheduled {
        memory.append(id, n);
        scheduler.update_computed(id, n);
    }
    // Two requests wait for their first token and one decodes.
    memory.texts.insert(2, vec![2; 300]);
    assert!(scheduler.add_request(2, 0, 300));
    scheduler.append_token(0);
    assert_eq!(scheduler.schedule(&mut memory).scheduled, [(0, 1), (1, 488)]);
}

#[test]
fn a_full_queue_rejects() {
    let mut scheduler = Scheduler::new(Limits { max_waiting: 2, ..Limits::default() });
    assert!(
        scheduler.add_request(1, 0, 5) && scheduler.add_request(2, 0, 5) && !scheduler.add_request(3, 0, 5)
    );
}
