/**
 * Replays crashes: random work on an image whose files are recorded, then every state in which the host
 * or the daemon could have left them is held against what had been promised by then.
 */

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { recoverInPlace } from "./crash-engine.ts";
import { contentOf, contentOfSnapshot, imageFiles, makeImage, workByQemu } from "./crash-images.ts";
import type { ImageRecipe } from "./crash-recipes.ts";
import { type RecordedSession, recordSession } from "./crash-session.ts";
import { CrashStates } from "./crash-states.ts";
import { CrashVerifier } from "./crash-verifier.ts";
import { Random } from "./random.ts";
import { SparseFile } from "./recording-sparse-file.ts";
import { randomState, SEED_LINE, type VerificationPlan, verifySession } from "./verify-session.ts";

export interface SessionPlan extends VerificationPlan {
  /** Steps of work. */
  readonly steps: number;
}

export interface ReplayPlan extends SessionPlan {
  /** The image is opened, worked on and closed this many times; between, QEMU works on it. */
  readonly sessions: number;
  /** This many crashed images of each session are worked on, and crash again. */
  readonly aftermaths: number;
  readonly aftermath: SessionPlan;
}

export class CrashReplay {
  readonly #recipe: ImageRecipe;
  readonly #plan: ReplayPlan;
  /** Where images lie while they are made and worked on. */
  readonly #directory: string;
  readonly #snapshots = new Map<string, SparseFile>();
  readonly #verifier: CrashVerifier;

  /** @param root an empty directory, best in memory */
  constructor(root: string, recipe: ImageRecipe, plan: ReplayPlan) {
    this.#recipe = recipe;
    this.#plan = plan;
    this.#directory = join(root, "work");
    this.#verifier = new CrashVerifier({
      root,
      recipe,
      recover: (directory) => recoverInPlace(directory, recipe),
      snapshots: this.#snapshots,
    });
  }

  /**
   * @returns how many states were verified
   * @throws {Error} a state breaks a promise; the message says how to see it again
   */
  async run(): Promise<number> {
    const { name, snapshots = 0 } = this.#recipe;
    mkdirSync(this.#directory);
    await makeImage(this.#directory, this.#recipe, new Random(`image ${name}`));
    for (let index = 0; index < snapshots; index++) await this.#noteSnapshot(`start-${index}`);
    for (let number = 0; number < this.#plan.sessions; number++) {
      const label = `session ${number} of "${name}"`;
      const random = new Random(label);
      if (number > 0) {
        const { length } = await contentOf(this.#directory, this.#recipe);
        const work = { number, virtualSize: length };
        await workByQemu(this.#directory, this.#recipe, work, random, (snapshot) =>
          this.#noteSnapshot(snapshot),
        );
      }
      const files = this.#load();
      const content = await contentOf(this.#directory, this.#recipe);
      const session = this.#record(label, files, content, this.#plan, random);
      await this.#verify(label, session, this.#plan, random, { mayLeak: false });
      for (let again = 0; again < this.#plan.aftermaths; again++) {
        await this.#crashAgain(`aftermath ${again} of ${label}`, session, random);
      }
      this.#save(session.files);
    }
    return this.#verifier.count;
  }

  #record(
    label: string,
    files: readonly SparseFile[],
    content: SparseFile,
    { steps }: SessionPlan,
    random: Random,
  ): RecordedSession {
    const { directory, recipe } = { directory: this.#directory, recipe: this.#recipe };
    try {
      return recordSession({ recipe, directory, files, content, steps, random });
    } catch (error) {
      throw new Error(`${label}, ${SEED_LINE}\n${String(error)}`, { cause: error });
    }
  }

  #verify(
    label: string,
    session: RecordedSession,
    plan: SessionPlan,
    random: Random,
    { mayLeak }: { mayLeak: boolean },
  ): Promise<void> {
    const where = { recipe: this.#recipe, directory: this.#directory };
    return verifySession(this.#verifier, { label, session, mayLeak, ...where }, plan, random);
  }

  /** A crashed image is opened again, worked on, and crashes once more. */
  async #crashAgain(label: string, session: RecordedSession, random: Random): Promise<void> {
    const states = new CrashStates(session.initial, session.log);
    const { files, describe } = randomState(label, session, states);
    this.#save(files);
    const content = await contentOf(this.#directory, this.#recipe);
    try {
      const next = this.#record(label, files, content, this.#plan.aftermath, random);
      // Only the tail of a QED image can be given back.
      const mayLeak = this.#recipe.format === "qed";
      await this.#verify(label, next, this.#plan.aftermath, random, { mayLeak });
    } catch (error) {
      throw new Error(`${String(error)}\nwhich began as ${describe()}`, { cause: error });
    }
  }

  async #noteSnapshot(name: string): Promise<void> {
    this.#snapshots.set(name, await contentOfSnapshot(this.#directory, this.#recipe, name));
  }

  #load(): SparseFile[] {
    return imageFiles(this.#directory, this.#recipe).map((path) => SparseFile.load(path));
  }

  #save(files: readonly SparseFile[]): void {
    imageFiles(this.#directory, this.#recipe).forEach((path, index) => {
      files[index]?.save(path);
    });
  }
}
