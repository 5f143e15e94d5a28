import assert from 'node:assert/strict';
import { webcrypto } from 'node:crypto';
import test from 'node:test';

import { Game, MOVES, cleanName, compare, parse, commitmentOf } from './game.js';

// Browsers have it as a global, and Node does from version 20 on.
globalThis.crypto ??= webcrypto;

const ANN = { id: 'a', name: 'Ann' };
const BOB = { id: 'b', name: 'Bob' };

/** Two players, and the messages in flight between them: [to, text]. */
function startGame() {
  const players = { a: Game.open('g', ANN), b: Game.join('g', BOB, ANN) };
  const inFlight = [];
  const send = (from, messages) => {
    for (const message of messages) {
      inFlight.push([from === 'a' ? 'b' : 'a', JSON.stringify({ from, ...message })]);
    }
  };
  const deliver = async (i = 0, keep = false) => {
    const [to, text] = inFlight[i];
    if (!keep) inFlight.splice(i, 1);
    const { from, message } = parse(text);
    send(to, await players[to].receive(from, message));
    // Each page may be reloaded at any time.
    players[to] = new Game(JSON.parse(JSON.stringify(players[to].state)));
  };
  const settle = async () => {
    while (inFlight.length > 0) await deliver();
  };
  const choose = async (who, move) => send(who, await players[who].choose(move));
  send('b', [players.b.joinRequest()]);
  return { players, inFlight, send, deliver, settle, choose };
}

test('rock loses to paper, paper to scissors, scissors to rock', () => {
  const all = MOVES.flatMap((mine) => MOVES.map((theirs) => `${mine} ${theirs} ${compare(mine, theirs)}`));
  assert.deepEqual(all, [
    'rock rock drawn', 'rock paper lost', 'rock scissors won',
    'paper rock won', 'paper paper drawn', 'paper scissors lost',
    'scissors rock lost', 'scissors paper won', 'scissors scissors drawn',
  ]);
});

test('two players play the best of three, and a draw does not count', async () => {
  const { players, settle, choose } = startGame();
  assert.equal(players.a.phase, 'waiting');
  assert.equal(players.b.phase, 'joining');
  await settle();
  assert.deepEqual([players.a.phase, players.b.phase, players.a.state.other], ['choosing', 'choosing', BOB]);
  for (const [a, b] of [['rock', 'scissors'], ['paper', 'paper'], ['rock', 'paper'], ['scissors', 'paper']]) {
    assert.equal(players.a.phase, 'choosing');
    await choose('a', a);
    assert.equal(players.a.phase, 'chosen');
    await settle();
    assert.equal(players.b.otherChose, true);
    await choose('b', b);
    await settle();
  }
  assert.deepEqual(players.a.score, { mine: 2, theirs: 1 });
  assert.deepEqual(players.b.score, { mine: 1, theirs: 2 });
  assert.deepEqual([players.a.phase, players.a.winner, players.b.winner], ['over', 'me', 'other']);
  await choose('a', 'rock');
  await settle();
  assert.equal(players.a.decided.length, 4);
});

test('no move is revealed before both are committed', async () => {
  const { inFlight, settle, choose } = startGame();
  await settle();
  await choose('a', 'rock');
  assert.equal(inFlight.length, 1);
  assert.doesNotMatch(inFlight[0][1], /rock|secret/);
  await settle();
  await choose('b', 'paper');
  assert.deepEqual(inFlight.map(([, text]) => JSON.parse(text).type), ['commit', 'reveal']);
});

test('late, repeated and reordered messages change nothing', async () => {
  let state = 1;
  const random = (below) => {
    state = (state * 48271) % 2147483647;
    return state % below;
  };
  for (let game = 0; game < 200; game++) {
    const { players, inFlight, settle, deliver, choose } = startGame();
    await settle();
    for (let round = 1; round <= 3; round++) {
      const [a, b] = [MOVES[random(3)], MOVES[random(3)]];
      const over = players.a.phase === 'over';
      const before = JSON.stringify(players.a.decided);
      for (const who of random(2) ? ['a', 'b'] : ['b', 'a']) await choose(who, who === 'a' ? a : b);
      for (let steps = 0; inFlight.length > 0; steps++) await deliver(random(inFlight.length), steps < 20 && random(3) === 0);
      if (over) assert.equal(JSON.stringify(players.a.decided), before);
      else assert.deepEqual(players.a.decided.at(-1), { round, mine: a, theirs: b, result: compare(a, b) });
      const mirrored = players.b.decided.map(({ round, mine, theirs }) => [round, theirs, mine]);
      assert.deepEqual(players.a.decided.map(({ round, mine, theirs }) => [round, mine, theirs]), mirrored);
    }
  }
});

test('the first choice counts, on both sides', async () => {
  const { players, settle, choose } = startGame();
  await settle();
  await choose('a', 'rock');
  await choose('a', 'paper');
  await settle();
  assert.equal(players.a.chosen, 'rock');
  const { commitment: first } = players.b.state.rounds[0].theirs;
  const other = { type: 'commit', round: 1, commitment: 'f'.repeat(64) };
  await players.b.receive('a', other);
  assert.equal(players.b.state.rounds[0].theirs.commitment, first);
});

test('a move other than the committed one is detected, and so is a copied commitment', async () => {
  for (const early of [false, true]) {
    const { players, settle, choose } = startGame();
    await settle();
    await choose('b', 'rock');
    const nonce = 'ab';
    const messages = [
      { type: 'commit', round: 1, commitment: await commitmentOf({ game: 'g', round: 1, player: 'a', move: 'rock', secret: nonce }) },
      { type: 'reveal', round: 1, move: 'paper', secret: nonce },
    ];
    for (const message of early ? messages.reverse() : messages) await players.b.receive('a', message);
    assert.deepEqual([players.b.phase, players.b.state.ended], ['over', 'cheated']);
  }
  const { players, inFlight, settle, choose } = startGame();
  await settle();
  await choose('b', 'rock');
  const copied = parse(inFlight[0][1]).message;
  const { secret } = players.b.state.rounds[0].mine;
  await players.b.receive('a', copied);
  await players.b.receive('a', { type: 'reveal', round: 1, move: 'rock', secret });
  assert.equal(players.b.state.ended, 'cheated');
});

test('a third player is refused because the game is full, and changes nothing', async () => {
  const { players, settle } = startGame();
  await settle();
  assert.deepEqual(await players.a.receive('c', { type: 'join', name: 'Cid' }), [{ type: 'full' }]);
  assert.deepEqual(await players.a.receive('b', { type: 'join', name: 'Bob' }), [{ type: 'welcome' }]);
  assert.deepEqual(await players.a.receive('c', { type: 'leave' }), []);
  assert.deepEqual([players.a.state.other, players.a.phase], [BOB, 'choosing']);
  const late = Game.join('g', { id: 'c', name: 'Cid' }, ANN);
  await late.receive('a', { type: 'full' });
  assert.deepEqual([late.phase, late.state.ended, late.leave()], ['over', 'full', []]);
});

test('a player who leaves ends the game, unless it is decided', async () => {
  const { players, send, settle } = startGame();
  await settle();
  send('a', players.a.leave());
  await settle();
  assert.deepEqual([players.b.phase, players.b.state.ended, players.b.leave()], ['over', 'left', []]);
  assert.deepEqual(await players.a.receive('b', { type: 'join', name: 'Bob' }), [{ type: 'full' }]);

  const next = startGame();
  await next.settle();
  for (let round = 0; round < 2; round++) {
    await next.choose('a', 'rock');
    await next.choose('b', 'paper');
    await next.settle();
  }
  next.send('b', next.players.b.leave());
  await next.settle();
  assert.deepEqual([next.players.a.winner, next.players.a.state.ended, next.players.a.state.gone], ['other', null, true]);
});

test('a chat message is shown once', async () => {
  const { players, inFlight, send, settle, deliver } = startGame();
  await settle();
  send('a', players.a.say('one'));
  send('a', players.a.say('two'));
  await deliver(1, true);
  await settle();
  assert.deepEqual(players.b.chat.map(({ text }) => text), ['two', 'one']);
  assert.equal(inFlight.length, 0);
});

test('only valid messages are parsed', () => {
  const commit = { from: 'a', type: 'commit', round: 1, commitment: 'a'.repeat(64) };
  const reveal = { from: 'a', type: 'reveal', round: 1, move: 'rock', secret: 'ab' };
  const said = { from: 'a', type: 'say', n: 1, text: 'x' };
  for (const good of [commit, reveal, said, { from: 'a', type: 'welcome' }]) {
    const { from, ...message } = good;
    assert.deepEqual(parse(JSON.stringify({ ...good, more: 1 })), { from, message });
  }
  const bad = [
    [], 7, null, 'x', {}, { from: 'a', type: 'dance' }, { ...commit, from: undefined }, { ...commit, from: '../x' },
    { ...commit, round: 0 }, { ...commit, round: 1e9 }, { ...commit, round: '1' }, { ...commit, commitment: 'A'.repeat(64) },
    { ...reveal, move: 'well' }, { ...reveal, secret: undefined }, { ...said, n: '1' }, { ...said, text: 1 },
  ];
  for (const value of bad) assert.equal(parse(JSON.stringify(value)), undefined, JSON.stringify(value));
  for (const text of ['', '{', '\0']) assert.equal(parse(text), undefined);
  assert.deepEqual(parse('{"from":"a","type":"join"}').message, { type: 'join', name: 'unnamed' });
  assert.equal(cleanName(' a\n\u202eb\u0000  c '), 'a b c');
  assert.equal(cleanName('x'.repeat(99)).length, 30);
});
