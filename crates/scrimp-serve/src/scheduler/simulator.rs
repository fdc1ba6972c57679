//! The scheduler against a memory of counted blocks, with requests, cancellations and lengths drawn from a seed.

use super::{
    Limits, Pages, RequestId, Scheduler,
    prefix::{BLOCK, PrefixCache},
};
use std::collections::BTreeMap;

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % n
    }
}

/// Tokens of a request and the blocks that hold them.
#[derive(Debug, Clone, Default)]
struct Table {
    blocks: Vec<usize>,
    /// Tokens in the blocks, and tokens of the text that they stand for.
    held: usize,
    position: usize,
}

struct Memory {
    /// Owners of each block.
    owners: Vec<usize>,
    tables: BTreeMap<RequestId, Table>,
    kept: PrefixCache<Table>,
    texts: BTreeMap<RequestId, Vec<u32>>,
    may_shrink: bool,
}

impl Memory {
    fn new(blocks: usize, may_shrink: bool) -> Self {
        Self {
            owners: vec![0; blocks],
            tables: BTreeMap::new(),
            kept: PrefixCache::new(4),
            texts: BTreeMap::new(),
            may_shrink,
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

    /// Appends as the engine does: a last block with two owners is copied.
    fn append(&mut self, id: RequestId, tokens: usize) {
        let mut table = self.tables.remove(&id).expect("a cache");
        if !table.held.is_multiple_of(BLOCK) {
            let last = *table.blocks.last().expect("a block");
            if self.owners[last] > 1 {
                let copy = self.take();
                self.owners[last] -= 1;
                *table.blocks.last_mut().expect("a block") = copy;
            }
        }
        table.held += tokens;
        table.position += tokens;
        while table.blocks.len() < table.held.div_ceil(BLOCK) {
            let block = self.take();
            table.blocks.push(block);
        }
        self.tables.insert(id, table);
    }

    /// Keeps a copy of a request's cache.
    fn keep(&mut self, id: RequestId) {
        let table = self.tables[&id].clone();
        if table.held != table.position {
            return;
        }
        table.blocks.iter().for_each(|&block| self.owners[block] += 1);
        let text = self.texts[&id][..table.position].to_vec();
        self.kept.insert(0, &text, 0, table);
        self.recount();
    }

    /// What the prefix cache forgot by itself gives its blocks back.
    fn recount(&mut self) {
        let mut owners = vec![0; self.owners.len()];
        let tables = self.tables.values().chain(self.kept.snapshots());
        tables.flat_map(|table| &table.blocks).for_each(|&block| owners[block] += 1);
        self.owners = owners;
    }

    /// No block is in two tables unless it is shared, and every owner is a table.
    fn check(&self) {
        let mut owners = vec![0; self.owners.len()];
        for table in self.tables.values().chain(self.kept.snapshots()) {
            assert_eq!(table.blocks.len(), table.held.div_ceil(BLOCK));
            table.blocks.iter().for_each(|&block| owners[block] += 1);
        }
        assert_eq!(owners, self.owners, "reference counts");
    }
}

impl Pages for Memory {
    fn free(&self) -> usize {
        self.owners.iter().filter(|&&n| n == 0).count()
    }

    fn needed(&self, id: RequestId, tokens: usize) -> usize {
        let table = &self.tables[&id];
        let copy =
            !table.held.is_multiple_of(BLOCK) && self.owners[*table.blocks.last().expect("a block")] > 1;
        (table.held + tokens).div_ceil(BLOCK) - table.blocks.len() + usize::from(copy)
    }

    fn begin(&mut self, id: RequestId) -> usize {
        assert!(!self.tables.contains_key(&id), "a second cache");
        let text = &self.texts[&id];
        let mut table = Table::default();
        if let Some(hit) = self.kept.find(0, text, text.len() - 1) {
            table.blocks = hit.snapshot.blocks[..hit.tokens.div_ceil(BLOCK)].to_vec();
            (table.held, table.position) = (hit.tokens, hit.tokens);
        }
        table.blocks.iter().for_each(|&block| self.owners[block] += 1);
        let cached = table.position;
        self.tables.insert(id, table);
        cached
    }

    fn release(&mut self, id: RequestId) {
        let table = self.tables.remove(&id).expect("a cache to release");
        self.drop_table(&table);
    }

    fn evict_kept(&mut self) -> bool {
        let evicted = self.kept.evict();
        self.recount();
        evicted
    }

    fn shrink(&mut self, id: RequestId) -> bool {
        let table = self.tables[&id].clone();
        if !self.may_shrink || table.held < 4 * BLOCK {
            return false;
        }
        self.drop_table(&table);
        let mut small = Table { held: table.held / 2, ..table };
        small.blocks.truncate(small.held.div_ceil(BLOCK));
        small.blocks.iter().for_each(|&block| self.owners[block] += 1);
        self.tables.insert(id, small);
        true
    }

    fn held(&self, id: RequestId) -> usize {
        self.tables[&id].held
    }
}

/// Runs `count` requests; returns (finished, cancelled, impossible, preemptions).
fn run(seed: u64, count: usize, may_shrink: bool) -> (usize, usize, usize, usize) {
    let mut random = Random(seed);
    let limits = Limits {
        max_running: 1 + random.below(6),
        max_step_tokens: 64 + random.below(200),
        max_prefill_beside_decode: 1 + random.below(64),
        max_waiting: 1000,
    };
    let mut memory = Memory::new(6 + random.below(20), may_shrink);
    let mut scheduler = Scheduler::new(limits);
    let mut answers: BTreeMap<RequestId, usize> = BTreeMap::new();
    let (mut submitted, mut finished, mut cancelled, mut impossible, mut preemptions) = (0, 0, 0, 0, 0);
    let mut idle_steps = 0;
    for step in 0.. {
        assert!(step < 200 * count + 5000, "seed {seed}: requests do not end: {scheduler:?}");
        if submitted < count && (scheduler.is_idle() || random.below(3) == 0) {
            let id = submitted as RequestId;
            let (family, n) = (random.below(3) as u32, 1 + random.below(500));
            memory.texts.insert(
                id,
                (0..n as u32).map(|i| if i < 200 { i + family } else { i * 31 + id as u32 }).collect(),
            );
            answers.insert(id, 1 + random.below(40));
            assert!(scheduler.submit(id, random.below(4) as u64, n));
            submitted += 1;
        }
        if random.below(40) == 0
            && let Some(&id) = answers.keys().nth(random.below(answers.len().max(1)))
        {
            scheduler.remove(id, &mut memory);
            answers.remove(&id);
            cancelled += 1;
        }
        memory.check();
        let plan = scheduler.plan(&mut memory);
        memory.check();
        preemptions += plan.preempted.len();
        for id in &plan.impossible {
            answers.remove(id);
            impossible += 1;
        }
        // Limits hold, and nobody is in a step twice.
        assert!(plan.steps.len() <= limits.max_running && scheduler.running().len() <= limits.max_running);
        assert!(plan.steps.iter().map(|s| s.1).sum::<usize>() <= limits.max_step_tokens);
        let mut ids: Vec<_> = plan.steps.iter().map(|s| s.0).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), plan.steps.len());
        assert!(plan.steps.iter().all(|s| s.1 > 0 && scheduler.running().contains(&s.0)));
        // There is work in every step while there are requests: nobody waits for nothing.
        idle_steps = if plan.steps.is_empty() && !scheduler.is_idle() { idle_steps + 1 } else { 0 };
        assert!(idle_steps < 3, "seed {seed}: nothing runs");
        for (id, tokens) in plan.steps {
            let was = memory.tables[&id].position;
            memory.append(id, tokens);
            assert!(was + tokens <= memory.texts[&id].len());
            if !scheduler.computed(id, tokens) {
                continue;
            }
            if random.below(2) == 0 {
                memory.keep(id);
            }
            let left = answers.get_mut(&id).expect("a request that runs");
            *left -= 1;
            if *left == 0 {
                answers.remove(&id);
                scheduler.remove(id, &mut memory);
                finished += 1;
            } else {
                memory.texts.get_mut(&id).expect("a text").push(7);
                scheduler.extend(id);
            }
        }
        memory.check();
        if submitted == count && scheduler.is_idle() {
            break;
        }
    }
    // Nothing is left behind.
    assert!(memory.tables.is_empty());
    while memory.evict_kept() {}
    assert_eq!(memory.free(), memory.owners.len());
    (finished, cancelled, impossible, preemptions)
}

#[test]
fn whatever_the_seed_all_requests_end_and_all_blocks_come_back() {
    let mut all = [0; 4];
    for seed in 0..300 {
        let (finished, cancelled, impossible, preemptions) = run(seed, 40, seed % 2 == 0);
        assert_eq!(finished + cancelled + impossible, 40, "seed {seed}");
        for (sum, n) in all.iter_mut().zip([finished, cancelled, impossible, preemptions]) {
            *sum += n;
        }
    }
    assert!(all.iter().all(|&n| n > 50), "everything happened: {all:?}");
}

#[test]
fn decode_goes_on_beside_a_long_prompt() {
    let limits = Limits { max_prefill_beside_decode: 100, ..Limits::default() };
    let mut memory = Memory::new(200, false);
    let mut scheduler = Scheduler::new(limits);
    for (id, n) in [(0, 10), (1, 1000)] {
        memory.texts.insert(id, vec![id as u32; n]);
        assert!(scheduler.submit(id, 0, n));
    }
    let plan = scheduler.plan(&mut memory);
    assert_eq!(plan.steps, [(0, 10), (1, 502)]);
    for (id, n) in plan.steps {
        memory.append(id, n);
        assert_eq!(scheduler.computed(id, n), id == 0);
    }
    scheduler.extend(0);
    let plan = scheduler.plan(&mut memory);
    assert_eq!(plan.steps, [(0, 1), (1, 100)]);
    for (id, n) in plan.steps {
        memory.append(id, n);
        scheduler.computed(id, n);
    }
    // Two wait for their first token, and one decodes.
    memory.texts.insert(2, vec![2; 300]);
    assert!(scheduler.submit(2, 0, 300));
    scheduler.extend(0);
    assert_eq!(scheduler.plan(&mut memory).steps, [(0, 1), (1, 398), (2, 113)]);
}

#[test]
fn a_full_queue_refuses() {
    let mut scheduler = Scheduler::new(Limits { max_waiting: 2, ..Limits::default() });
    assert!(scheduler.submit(1, 0, 5) && scheduler.submit(2, 0, 5) && !scheduler.submit(3, 0, 5));
}
