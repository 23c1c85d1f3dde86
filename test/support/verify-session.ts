/** Holds what crashes of a recorded session could have left behind against what had been promised by then. */

import { contentOf, imageFiles, qemuImg, sourceArguments } from "./crash-images.ts";
import type { ImageRecipe } from "./crash-recipes.ts";
import { type RecordedSession, storyAt } from "./crash-session.ts";
import { CrashStates, STRATEGIES } from "./crash-states.ts";
import type { CrashVerifier, StateToVerify } from "./crash-verifier.ts";
import { findForbidden } from "./disk-model.ts";
import { Random, SEED } from "./random.ts";

export interface VerificationPlan {
  /** Prefixes of the log to verify, at the most. */
  readonly prefixes: number;
  /** Random states to verify. */
  readonly randomStates: number;
}

/** What is verified, and where. */
export interface SessionToVerify {
  readonly label: string;
  readonly session: RecordedSession;
  readonly recipe: ImageRecipe;
  /** Where the image may lie in the end, to be looked at. */
  readonly directory: string;
  /** An earlier crash may have leaked clusters of it, which cannot be given back. */
  readonly mayLeak: boolean;
}

export const SEED_LINE = `TSIMGFS_TEST_SEED=${SEED} repeats it`;

/**
 * Verify crashes of a session, and its orderly end.
 *
 * @throws {Error} a state breaks a promise
 */
export async function verifySession(
  verifier: CrashVerifier,
  subject: SessionToVerify,
  plan: VerificationPlan,
  random: Random,
): Promise<void> {
  const { label, session, mayLeak } = subject;
  const states = new CrashStates(session.initial, session.log);
  const last = session.log.operations.length;
  for (const position of somePositions(last, plan.prefixes, random)) {
    await verifier.add({
      files: states.prefix(position),
      allowed: session.model.allowedAfterKill(position),
      mayLeak,
      describe: () => `${label}, prefix ${position}, ${SEED_LINE}\n${storyAt(session, position)}`,
    });
  }
  for (let number = 0; number < plan.randomStates; number++) {
    const state = randomState(`${label}, state ${number}`, session, states);
    await verifier.add({ ...state, mayLeak });
  }
  await verifier.finish();
  await expectOrderlyEnd(subject);
}

/** A state that depends on its label and the seed alone. */
export function randomState(
  label: string,
  session: RecordedSession,
  states: CrashStates,
): StateToVerify {
  const random = new Random(label);
  const position = random.between(0, session.log.operations.length);
  const strategy = random.pick(STRATEGIES);
  const mixed = strategy === "any-order";
  return {
    files: states.random(position, strategy, random),
    allowed: session.model.allowedAfterPowerCut(position, { mixed }),
    describe: () =>
      `${label} (${strategy}, position ${position}), ${SEED_LINE}\n${storyAt(session, position)}`,
  };
}

/** After an orderly end nothing is leaked by it, and the disk contains exactly what was written. */
async function expectOrderlyEnd(subject: SessionToVerify): Promise<void> {
  const { label, session, recipe, directory, mayLeak } = subject;
  imageFiles(directory, recipe).forEach((path, index) => {
    session.files[index]?.save(path);
  });
  const end = session.log.operations.length;
  const story = `${label}, ${SEED_LINE}\n${storyAt(session, end)}`;
  if (recipe.format !== "raw") {
    const args = ["check", "-q", ...sourceArguments(recipe)];
    const { status, stdout, stderr } = await qemuImg(directory, args);
    const isClean = status === 0 || (status === 3 && mayLeak);
    if (!isClean) throw new Error(`after the end: ${stdout}${stderr}\n${story}`);
  }
  const content = await contentOf(directory, recipe);
  const problem = findForbidden(content, session.model.allowedAfterKill(end));
  if (problem !== undefined) throw new Error(`after the end: ${problem}\n${story}`);
}

/** All positions of a log up to its end, or that many of them, in order. */
function somePositions(last: number, count: number, random: Random): number[] {
  const all = Array.from({ length: last + 1 }, (_, position) => position);
  if (all.length <= count) return all;
  const chosen = new Set<number>([last]);
  while (chosen.size < count) chosen.add(random.between(0, last));
  return all.filter((position) => chosen.has(position));
}
