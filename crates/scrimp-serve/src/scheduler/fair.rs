//! A queue with one FIFO per client, served round-robin: a client with many requests delays only its own.

use super::RequestId;
use std::collections::VecDeque;

/// Waiting requests by client.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    /// Clients with requests; the client that is served next comes first.
    clients: VecDeque<(u64, VecDeque<RequestId>)>,
}

impl FairQueue {
    pub(super) fn len(&self) -> usize {
        self.clients.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// Adds a request to the end of its client's queue.
    pub(super) fn push(&mut self, client: u64, id: RequestId) {
        match self.clients.iter_mut().find(|(c, _)| *c == client) {
            Some((_, queue)) => queue.push_back(id),
            None => self.clients.push_back((client, VecDeque::from([id]))),
        }
    }

    /// The next request.
    pub(super) fn peek(&self) -> Option<RequestId> {
        self.clients.front().and_then(|(_, queue)| queue.front().copied())
    }

    /// Removes the next request. Its client moves behind all others.
    pub(super) fn pop(&mut self) -> Option<RequestId> {
        let (client, mut queue) = self.clients.pop_front()?;
        let id = queue.pop_front();
        if !queue.is_empty() {
            self.clients.push_back((client, queue));
        }
        id
    }

    pub(super) fn remove(&mut self, client: u64, id: RequestId) {
        if let Some(at) = self.clients.iter().position(|(c, _)| *c == client) {
            self.clients[at].1.retain(|&r| r != id);
            if self.clients[at].1.is_empty() {
                self.clients.remove(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_take_turns() {
        let mut queue = FairQueue::default();
        for (client, id) in [(1, 10), (1, 11), (1, 12), (2, 20), (3, 30), (2, 21)] {
            queue.push(client, id);
        }
        queue.remove(3, 30);
        queue.remove(9, 99);
        assert_eq!((queue.len(), queue.peek()), (5, Some(10)));
        let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
        assert_eq!(order, [10, 20, 11, 21, 12]);
    }
}
