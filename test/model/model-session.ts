/** Sessions of random work on an image, held against a plain file by qemu-img. */

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect } from "vitest";
import {
  BACKING_NAME,
  contentOf,
  contentOfSnapshot,
  isSnapshotIntact,
  makeImage,
  qemuImg,
  sourceArguments,
  workByQemu,
} from "../support/crash-images.ts";
import type { ImageRecipe } from "../support/crash-recipes.ts";
import { Random } from "../support/random.ts";
import type { SparseFile } from "../support/recording-sparse-file.ts";

/** Changes the disk of the image in a directory through the engine, and `content` alike. */
export type Work = (directory: string, content: SparseFile, random: Random) => Promise<void>;

export class ModelRun {
  readonly #root: string;
  readonly #recipe: ImageRecipe;
  readonly #directory: string;
  readonly #snapshots = new Map<string, SparseFile>();

  /** @param root an empty directory */
  constructor(root: string, recipe: ImageRecipe) {
    this.#root = root;
    this.#recipe = recipe;
    this.#directory = join(root, "work");
  }

  /** Makes the image and works on it that many times; between, QEMU does. */
  async run(sessions: number, work: Work): Promise<void> {
    const { name } = this.#recipe;
    const directory = this.#directory;
    mkdirSync(directory);
    await makeImage(directory, this.#recipe, new Random(`image ${name}`));
    const backing = this.#hashOfBacking();
    for (let number = 0; number < sessions; number++) {
      const random = new Random(`model session ${number} of ${name}`);
      if (number > 0) await this.#workByQemu(number, random);
      const content = await contentOf(directory, this.#recipe);
      await work(directory, content, random);
      await this.#expectContent(content, `session ${number} of ${name}`);
      expect(this.#hashOfBacking(), "the backing file").toBe(backing);
    }
  }

  async #expectContent(content: SparseFile, label: string): Promise<void> {
    const directory = this.#directory;
    if (this.#recipe.format !== "raw") {
      const args = ["check", "-q", ...sourceArguments(this.#recipe)];
      const { status, stdout, stderr } = await qemuImg(directory, args);
      expect({ label, status, output: stdout + stderr }).toEqual({ label, status: 0, output: "" });
    }
    content.save(join(directory, "expected"));
    const isEncrypted = this.#recipe.encryption !== undefined;
    const expected = isEncrypted
      ? ["driver=raw,file.filename=expected"]
      : ["-F", "raw", "expected"];
    const compare = ["compare", "-q", ...sourceArguments(this.#recipe), ...expected];
    const { status, stdout, stderr } = await qemuImg(directory, compare);
    expect({ label, status, output: stdout + stderr }).toEqual({ label, status: 0, output: "" });
    for (const [name, wanted] of this.#snapshots) {
      const isIntact = await isSnapshotIntact(directory, this.#recipe, name, wanted);
      expect(isIntact, `${label}: snapshot ${name}`).toBe(true);
    }
  }

  async #workByQemu(number: number, random: Random): Promise<void> {
    const { length } = await contentOf(this.#directory, this.#recipe);
    const work = { number, virtualSize: length };
    await workByQemu(this.#directory, this.#recipe, work, random, async (name) => {
      this.#snapshots.set(name, await contentOfSnapshot(this.#directory, this.#recipe, name));
    });
  }

  #hashOfBacking(): string | undefined {
    const path = join(this.#root, BACKING_NAME);
    if (!existsSync(path)) return undefined;
    return createHash("sha256").update(readFileSync(path)).digest("hex");
  }
}
