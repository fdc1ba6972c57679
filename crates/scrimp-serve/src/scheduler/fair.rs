//! A queue in which clients take turns: one that sends many requests waits behind its own, not others behind it.

use super::RequestId;
use std::collections::VecDeque;

/// Requests by client, clients in turn.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    /// Clients that have requests, the next one first.
    clients: VecDeque<(u64, VecDeque<RequestId>)>,
}

impl FairQueue {
    pub(super) fn len(&self) -> usize {
        self.clients.iter().map(|(_, queue)| queue.len()).sum()
    }

    /// Behind the client's others.
    pub(super) fn push(&mut self, client: u64, id: RequestId) {
        match self.clients.iter_mut().find(|(c, _)| *c == client) {
            Some((_, queue)) => queue.push_back(id),
            None => self.clients.push_back((client, VecDeque::from([id]))),
        }
    }

    /// Whose turn it is.
    pub(super) fn peek(&self) -> Option<RequestId> {
        self.clients.front().and_then(|(_, queue)| queue.front().copied())
    }

    /// Takes that one; its client's next turn comes after all others'.
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
