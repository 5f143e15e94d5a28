import assert from 'node:assert/strict';
import test from 'node:test';

import { Game, MOVES, cleanName, compare, parse, seal } from './game.js';

const ANN = { id: 'a', name: 'Ann' };
const BOB = { id: 'b', name: 'Bob' };

/** Two players, and the messages that are under way between them: [to, from, text]. */
function table() {
  const players = { a: Game.open('g', ANN), b: Game.join('g', BOB, ANN) };
  const way = [];
  const post = (from, messages) => {
    for (const message of messages) {
      way.push([from === 'a' ? 'b' : 'a', JSON.stringify({ from, ...message })]);
    }
  };
  const deliver = async (i = 0, keep = false) => {
    const [to, text] = way[i];
    if (!keep) way.splice(i, 1);
    const { from, message } = parse(text);
    post(to, await players[to].receive(from, message));
    // Each page may be loaded again at any time.
    players[to] = new Game(JSON.parse(JSON.stringify(players[to].state)));
  };
  const settle = async () => {
    while (way.length > 0) await deliver();
  };
  const choose = async (who, move) => post(who, await players[who].choose(move));
  post('b', [players.b.hello()]);
  return { players, way, post, deliver, settle, choose };
}

test('rock loses to paper, paper to scissors, scissors to rock', () => {
  const all = MOVES.flatMap((mine) => MOVES.map((theirs) => `${mine} ${theirs} ${compare(mine, theirs)}`));
  assert.deepEqual(all, [
    'rock rock drawn', 'rock paper lost', 'rock scissors won',
    'paper rock won', 'paper paper drawn', 'paper scissors lost',
    'scissors rock lost', 'scissors paper won', 'scissors scissors drawn',
  ]);
});

test('two players play the best of three, a draw does not count', async () => {
  const { players, settle, choose } = table();
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

test('nobody learns a move before both are sealed', async () => {
  const { way, settle, choose } = table();
  await settle();
  await choose('a', 'rock');
  assert.equal(way.length, 1);
  assert.doesNotMatch(way[0][1], /rock|secret/);
  await settle();
  await choose('b', 'paper');
  assert.deepEqual(way.map(([, text]) => JSON.parse(text).type), ['sealed', 'shown']);
});

test('messages that come late, twice and in any order change nothing', async () => {
  let state = 1;
  const random = (below) => {
    state = (state * 48271) % 2147483647;
    return state % below;
  };
  for (let game = 0; game < 200; game++) {
    const { players, way, settle, deliver, choose } = table();
    await settle();
    for (let round = 1; round <= 3; round++) {
      const [a, b] = [MOVES[random(3)], MOVES[random(3)]];
      const over = players.a.phase === 'over';
      const before = JSON.stringify(players.a.decided);
      for (const who of random(2) ? ['a', 'b'] : ['b', 'a']) await choose(who, who === 'a' ? a : b);
      for (let steps = 0; way.length > 0; steps++) await deliver(random(way.length), steps < 20 && random(3) === 0);
      if (over) assert.equal(JSON.stringify(players.a.decided), before);
      else assert.deepEqual(players.a.decided.at(-1), { round, mine: a, theirs: b, result: compare(a, b) });
      const mirrored = players.b.decided.map(({ round, mine, theirs }) => [round, theirs, mine]);
      assert.deepEqual(players.a.decided.map(({ round, mine, theirs }) => [round, mine, theirs]), mirrored);
    }
  }
});

test('the first choice counts, on both sides', async () => {
  const { players, settle, choose } = table();
  await settle();
  await choose('a', 'rock');
  await choose('a', 'paper');
  await settle();
  assert.equal(players.a.chosen, 'rock');
  const { seal: first } = players.b.state.rounds[0].theirs;
  const other = { type: 'sealed', round: 1, seal: 'f'.repeat(64) };
  await players.b.receive('a', other);
  assert.equal(players.b.state.rounds[0].theirs.seal, first);
});

test('a move that was not the sealed one is found out, and so is a copied seal', async () => {
  for (const early of [false, true]) {
    const { players, settle, choose } = table();
    await settle();
    await choose('b', 'rock');
    const word = 'ab';
    const told = [
      { type: 'sealed', round: 1, seal: await seal({ game: 'g', round: 1, player: 'a', move: 'rock', secret: word }) },
      { type: 'shown', round: 1, move: 'paper', secret: word },
    ];
    for (const message of early ? told.reverse() : told) await players.b.receive('a', message);
    assert.deepEqual([players.b.phase, players.b.state.ended], ['over', 'cheated']);
  }
  const { players, way, settle, choose } = table();
  await settle();
  await choose('b', 'rock');
  const copied = parse(way[0][1]).message;
  const { secret } = players.b.state.rounds[0].mine;
  await players.b.receive('a', copied);
  await players.b.receive('a', { type: 'shown', round: 1, move: 'rock', secret });
  assert.equal(players.b.state.ended, 'cheated');
});

test('a third player is told that the game is full, and changes nothing', async () => {
  const { players, settle } = table();
  await settle();
  assert.deepEqual(await players.a.receive('c', { type: 'join', name: 'Cid' }), [{ type: 'full' }]);
  assert.deepEqual(await players.a.receive('b', { type: 'join', name: 'Bob' }), [{ type: 'welcome' }]);
  assert.deepEqual(await players.a.receive('c', { type: 'leave' }), []);
  assert.deepEqual([players.a.state.other, players.a.phase], [BOB, 'choosing']);
  const late = Game.join('g', { id: 'c', name: 'Cid' }, ANN);
  await late.receive('a', { type: 'full' });
  assert.deepEqual([late.phase, late.state.ended, late.leave()], ['over', 'full', []]);
});

test('who leaves ends the game, unless it is decided', async () => {
  const { players, post, settle } = table();
  await settle();
  post('a', players.a.leave());
  await settle();
  assert.deepEqual([players.b.phase, players.b.state.ended, players.b.leave()], ['over', 'left', []]);
  assert.deepEqual(await players.a.receive('b', { type: 'join', name: 'Bob' }), [{ type: 'full' }]);

  const next = table();
  await next.settle();
  for (let round = 0; round < 2; round++) {
    await next.choose('a', 'rock');
    await next.choose('b', 'paper');
    await next.settle();
  }
  next.post('b', next.players.b.leave());
  await next.settle();
  assert.deepEqual([next.players.a.winner, next.players.a.state.ended, next.players.a.state.gone], ['other', null, true]);
});

test('what is said is heard once', async () => {
  const { players, way, post, settle, deliver } = table();
  await settle();
  post('a', players.a.say('one'));
  post('a', players.a.say('two'));
  await deliver(1, true);
  await settle();
  assert.deepEqual(players.b.talk.map(({ text }) => text), ['two', 'one']);
  assert.equal(way.length, 0);
});

test('only what is ours is understood', () => {
  const sealed = { from: 'a', type: 'sealed', round: 1, seal: 'a'.repeat(64) };
  const shown = { from: 'a', type: 'shown', round: 1, move: 'rock', secret: 'ab' };
  const said = { from: 'a', type: 'say', n: 1, text: 'x' };
  for (const good of [sealed, shown, said, { from: 'a', type: 'welcome' }]) {
    const { from, ...message } = good;
    assert.deepEqual(parse(JSON.stringify({ ...good, more: 1 })), { from, message });
  }
  const bad = [
    [], 7, null, 'x', {}, { from: 'a', type: 'dance' }, { ...sealed, from: undefined }, { ...sealed, from: '../x' },
    { ...sealed, round: 0 }, { ...sealed, round: 1e9 }, { ...sealed, round: '1' }, { ...sealed, seal: 'A'.repeat(64) },
    { ...shown, move: 'well' }, { ...shown, secret: undefined }, { ...said, n: '1' }, { ...said, text: 1 },
  ];
  for (const value of bad) assert.equal(parse(JSON.stringify(value)), undefined, JSON.stringify(value));
  for (const text of ['', '{', '\0']) assert.equal(parse(text), undefined);
  assert.deepEqual(parse('{"from":"a","type":"join"}').message, { type: 'join', name: 'somebody' });
  assert.equal(cleanName(' a\n\u202eb\u0000  c '), 'a b c');
  assert.equal(cleanName('x'.repeat(99)).length, 30);
});
