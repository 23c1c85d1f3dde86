/**
 * Holds states of an image after a crash against what is promised: by qemu-img, which says whether the
 * metadata is sound and what the disk contains, before and after our own recovery.
 */

import { cpSync, existsSync, mkdirSync, readFileSync, rmSync } from "node:fs";
import { join } from "node:path";
import {
  IMAGE_NAME,
  imageFiles,
  isSnapshotIntact,
  qemuImg,
  sourceArguments,
} from "./crash-images.ts";
import { hasDataFile, type ImageRecipe } from "./crash-recipes.ts";
import { type Allowed, findForbidden } from "./disk-model.ts";
import { SparseFile } from "./recording-sparse-file.ts";
import { run } from "./run.ts";

/** Exit codes of qemu-img check. */
const CHECK_CLEAN = 0;
const CHECK_LEAKS = 3;

/** Characters of what qemu-img says that messages quote. */
const OUTPUT_MAX = 500;

/** States that are written out at a time: starting programs is what takes long. */
const BATCH = 16;

/**
 * Checks and converts the images in the directories that its arguments name, all that at once: each
 * directory gets the files check (what qemu-img check said), check.status and disk. Images are
 * named with what comes before and after their files.
 */
const EXAMINE = `
format=$1; together=$2; options=$3; before=$4; after=$5; shift 5
rm -f disks
for directory; do rm -f "$directory/disk"; done
if [ "$format" != raw ]; then
  for directory; do
    (cd "$directory"; qemu-img check -q $options "$before"${IMAGE_NAME}"$after" >check 2>&1; echo $? >check.status)
  done &
fi
if [ "$together" = yes ]; then
  for directory; do set -- "$@" "$before$directory/${IMAGE_NAME}$after"; shift; done
  qemu-img convert $options -O raw "$@" disks
else
  for directory; do (cd "$directory"; qemu-img convert $options -O raw "$before"${IMAGE_NAME}"$after" disk); done
fi
wait
`;

/** Where to leave the image of a state that fails, in a directory of its own; default: nowhere. */
const KEEP = process.env["TSIMGFS_CRASH_KEEP"];

export interface StateToVerify {
  /** The image, and its data file if it has one. */
  readonly files: readonly SparseFile[];
  readonly allowed: Allowed;
  /** An earlier crash may have leaked clusters of it where QED cannot give them back: before others in use. */
  readonly mayLeak?: boolean;
  /** Which state this is, how to make it again, and what led to it. */
  describe(): string;
}

/** A state as it lies in its directory. */
interface Written {
  readonly state: StateToVerify;
  readonly directory: string;
}

/** What qemu-img says of a state. */
interface Examination {
  /** Undefined: it cannot be read. */
  readonly disk: SparseFile | undefined;
  readonly check: { readonly status: number; readonly output: string };
  /** What it said when it read the disks of the batch. */
  readonly problem: string;
}

/** What the disk was when an internal snapshot was taken. */
export type SnapshotContents = ReadonlyMap<string, SparseFile>;

export interface VerifierOptions {
  /** A directory whose parent has the backing file, for as many directories as needed. */
  readonly root: string;
  readonly recipe: ImageRecipe;
  /** Opens the image in a directory for writing, as after a crash, and closes it in order. */
  readonly recover: (directory: string) => void;
  readonly snapshots: SnapshotContents;
}

export class CrashVerifier {
  readonly #options: VerifierOptions;
  #waiting: StateToVerify[] = [];
  /** States that were verified. */
  count = 0;

  constructor(options: VerifierOptions) {
    this.#options = options;
  }

  /**
   * Verify a state, now or with others later.
   *
   * @throws {Error} a state breaks a promise
   */
  async add(state: StateToVerify): Promise<void> {
    this.#waiting.push(state);
    if (this.#waiting.length >= BATCH) await this.finish();
  }

  /** Verify what still waits. */
  async finish(): Promise<void> {
    const written = this.#waiting.map((state, index) => this.#write(state, index));
    this.#waiting = [];
    if (written.length === 0) return;
    const crashed = await this.#examine(written);
    for (const [index, each] of written.entries()) {
      await this.#judgeCrashed(each, crashed[index]);
    }
    for (const each of written) {
      try {
        this.#options.recover(each.directory);
      } catch (error) {
        this.#fail(each, `the recovery fails: ${String(error)}`);
      }
    }
    const recovered = await this.#examine(written);
    for (const [index, each] of written.entries()) {
      const now = recovered[index];
      const { format } = this.#options.recipe;
      const isOrdered =
        now?.check.status === CHECK_CLEAN ||
        (format === "qed" && now?.check.status === CHECK_LEAKS);
      if (!isOrdered) {
        this.#fail(each, `after the recovery qemu-img check says: ${now?.check.output}`);
      }
      if (now?.disk === undefined || crashed[index]?.disk?.equals(now.disk) !== true) {
        this.#fail(each, "the recovery changes what the disk contains");
      }
    }
    const [first] = written;
    if (first !== undefined) await this.#readSnapshots(first);
    this.count += written.length;
  }

  #write(state: StateToVerify, index: number): Written {
    const directory = join(this.#options.root, `state-${index}`);
    rmSync(directory, { recursive: true, force: true });
    mkdirSync(directory);
    imageFiles(directory, this.#options.recipe).forEach((path, number) => {
      state.files[number]?.save(path);
    });
    return { state, directory };
  }

  /** What qemu-img makes of images as they are now. */
  async #examine(written: readonly Written[]): Promise<Examination[]> {
    const { root, recipe } = this.#options;
    const { format, virtualSize } = recipe;
    // Names of data files are relative to where qemu-img 7.2 runs; disks of other sizes end elsewhere.
    const together = !hasDataFile(recipe) && recipe.growth === undefined;
    const source = sourceArguments(recipe);
    const [before = "", after = ""] = (source.at(-1) ?? "").split(IMAGE_NAME);
    const naming = [source.slice(0, -1).join(" "), before, after];
    const directories = written.map((_, index) => `state-${index}`);
    const args = [format, together ? "yes" : "no", ...naming, ...directories];
    const { stderr } = await run("sh", ["-c", EXAMINE, "sh", ...args], { cwd: root });
    return written.map(({ directory }, index) => {
      const check = format === "raw" ? { status: CHECK_CLEAN, output: "" } : readCheck(directory);
      const disk = together
        ? loadIfThere(join(root, "disks"), index * virtualSize, virtualSize)
        : loadIfThere(join(directory, "disk"), 0, Number.POSITIVE_INFINITY);
      return { disk, check, problem: stderr };
    });
  }

  async #judgeCrashed(written: Written, found: Examination | undefined): Promise<void> {
    const { status, output } = found?.check ?? { status: undefined, output: "" };
    if (status !== CHECK_CLEAN && status !== CHECK_LEAKS) {
      await this.#expectRepairable(written, `qemu-img check says: ${output}`);
    }
    if (status === CHECK_LEAKS && !this.#knowsOfLeaks(written.state)) {
      this.#fail(written, "the next writer does not know that clusters are leaked");
    }
    if (found?.disk === undefined) {
      this.#fail(written, `qemu-img cannot read this state or one with it: ${found?.problem}`);
    }
    const problem = findForbidden(found.disk, written.state.allowed);
    if (problem !== undefined) this.#fail(written, problem);
  }

  /** Whether a QED image with leaked clusters has the need-check bit. */
  #knowsOfLeaks({ files, mayLeak = false }: StateToVerify): boolean {
    return this.#options.recipe.format !== "qed" || mayLeak || isToBeChecked(files[0]);
  }

  /** Where QEMU had left its refcounts behind, they are wrong until the repair is durable. */
  async #expectRepairable(written: Written, problem: string): Promise<void> {
    const { directory, state } = written;
    if (this.#options.recipe.dirty !== true || !isDirty(state)) this.#fail(written, problem);
    const copy = "repaired";
    cpSync(join(directory, IMAGE_NAME), join(directory, copy));
    const repair = await qemuImg(directory, ["check", "-q", "-r", "all", "-f", "qcow2", copy]);
    if (repair.status !== CHECK_CLEAN) {
      this.#fail(written, `qemu-img cannot repair it: ${repair.stdout}${repair.stderr}`);
    }
  }

  async #readSnapshots(written: Written): Promise<void> {
    const { recipe, snapshots } = this.#options;
    for (const [name, content] of snapshots) {
      if (!(await isSnapshotIntact(written.directory, recipe, name, content))) {
        this.#fail(written, `the snapshot ${name} has changed`);
      }
    }
  }

  #fail(written: Written, problem: string): never {
    let kept = "";
    if (KEEP !== undefined) {
      const directory = join(KEEP, `crash-${process.pid}-${this.count}`);
      cpSync(written.directory, directory, { recursive: true });
      // As the crash left it: the recovery may have changed the copy that was verified.
      written.state.files.forEach((file, number) => {
        file.save(join(directory, `crashed-${number}`));
      });
      kept = `\nkept in ${directory}`;
    }
    throw new Error(`${problem}\n${written.state.describe()}${kept}`);
  }
}

/** Whether the header of a qcow2 image says that refcounts may be wrong. Source: specification, "Header". */
function isDirty(state: StateToVerify): boolean {
  const header = state.files[0]?.bytesAt(0, 104);
  return header !== undefined && header.readUInt32BE(4) >= 3 && (header.readUInt8(79) & 1) === 1;
}

/** Whether the header of a QED image says that it needs a check. Source: specification, "Header". */
function isToBeChecked(image: SparseFile | undefined): boolean {
  return image !== undefined && (image.bytesAt(16, 1).readUInt8() & 2) !== 0;
}

function loadIfThere(path: string, start: number, length: number): SparseFile | undefined {
  return existsSync(path) ? SparseFile.loadPart(path, start, length) : undefined;
}

function readCheck(directory: string): { status: number; output: string } {
  return {
    status: Number(readFileSync(join(directory, "check.status"), "utf8")),
    output: readFileSync(join(directory, "check"), "utf8").slice(0, OUTPUT_MAX),
  };
}
