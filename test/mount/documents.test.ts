// Every command that README.md and CONTRIBUTING.md show is run as it stands, and says what they show. What cannot be run
// here is listed below, each with the reason, and with what is looked at instead.

import { existsSync } from "node:fs";
import { readdir, readFile, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseOptions } from "../bench/options.ts";
import { makeClone, runShown } from "../support/document-world.ts";
import { namesNotInSource } from "../support/named-source.ts";
import { IS_ROOT } from "../support/ordinary-user.ts";
import { PackageRegistry } from "../support/package-registry.ts";
import { REPOSITORY } from "../support/repository.ts";
import { run } from "../support/run.ts";
import { makeScratch } from "../support/scratch.ts";
import { outputPattern, type ShownCommand, shownSections } from "../support/shell-blocks.ts";
import { expectShownOptions } from "../support/shown-options.ts";

const DOCUMENTS = await Promise.all(
  ["README.md", "CONTRIBUTING.md"].map(async (name) => ({
    name,
    sections: shownSections(await readFile(join(REPOSITORY, name), "utf8")),
  })),
);

interface NotRun {
  readonly pattern: RegExp;
  readonly reason: string;
  /** Looks at what can be known of the command without running it. */
  check(words: readonly string[]): Promise<void> | void;
}

/** The words of a command behind the assignments of its environment, without their double quotes. */
function wordsOf(text: string): string[] {
  const words = text.replace(/ +#.*$/, "").match(/"[^"]*"|\S+/g) ?? [];
  const first = words.findIndex((word) => !/^\w+=/.test(word));
  return words.slice(first).map((word) => word.replace(/^"(.*)"$/, "$1"));
}

/** Scripts of package.json. */
async function expectScript(name: string): Promise<void> {
  const description: { readonly scripts: Readonly<Record<string, string>> } = JSON.parse(
    await readFile(join(REPOSITORY, "package.json"), "utf8"),
  );
  expect(Object.keys(description.scripts)).toContain(name);
}

const NOT_RUN: readonly NotRun[] = [
  {
    pattern: /^sh mount-scripts\/test\.sh$/,
    reason: "it runs this test, among all others",
    check: async () => {
      await run("sh", ["-n", join(REPOSITORY, "mount-scripts/test.sh")]);
    },
  },
  {
    pattern: /^(\w+=\S+ )*npm run bench\b/,
    reason: "a benchmark takes minutes, and all of the machine",
    check: ([, , , separator, ...args]) => {
      expect([separator ?? "--", parseOptions(args)]).toEqual(["--", expect.anything()]);
    },
  },
  {
    pattern: /^(\w+=\S+ )*npx vitest run\b/,
    reason: "the runner of these tests would wait for itself",
    check: async ([, , , ...args]) => {
      const paths = args.filter((arg) => arg.startsWith("test/"));
      expect(paths.filter((path) => !existsSync(join(REPOSITORY, path)))).toEqual([]);
      const options = args.filter((arg) => /^-/.test(arg));
      expect(["-t", "--project"]).toEqual(expect.arrayContaining(options));
      const title = args[args.indexOf("-t") + 1];
      if (options.includes("-t")) {
        const said = `(describe|it)\\(".*${title}`;
        await run("grep", ["-rqE", said, ...paths], { cwd: REPOSITORY });
      }
    },
  },
  {
    pattern: /^(npm (ci|test|run \w+)|npx (biome|tsc)\b.*)$/,
    reason:
      "it installs, builds or checks this repository, as test.sh does before it runs this test",
    check: async ([, verb, script]) => {
      if (verb === "run") await expectScript(script ?? "");
    },
  },
];

function exceptionFor({ text }: ShownCommand): NotRun | undefined {
  return NOT_RUN.find(({ pattern }) => pattern.test(text));
}

describe.skipIf(!IS_ROOT)("the commands of a document (need root)", () => {
  let directory = "";
  let registry: PackageRegistry | undefined;

  beforeAll(async () => {
    directory = await makeScratch("documents");
    await makeClone(directory);
    registry = await PackageRegistry.start(directory);
  });
  afterAll(async () => {
    await registry?.stop();
    await rm(directory, { recursive: true, force: true });
  });

  /** Packages come from node_modules, and go to a place of their own; what is packed has been built. */
  const npmEnvironment = (): Readonly<Record<string, string>> => ({
    npm_config_cache: join(directory, "cache"),
    npm_config_userconfig: join(directory, "npmrc"),
    npm_config_registry: registry?.url ?? "",
    npm_config_noproxy: "127.0.0.1",
    npm_config_prefix: join(directory, "prefix"),
    npm_config_ignore_scripts: "true",
    npm_config_audit: "false",
    npm_config_update_notifier: "false",
  });

  describe.each(DOCUMENTS)("$name", ({ name, sections }) => {
    it.each(sections.map(({ heading, commands }) => [heading, commands] as const))(
      "%s",
      async (_, commands) => {
        const shown = commands.filter((command) => exceptionFor(command) === undefined);
        for (const command of commands) {
          await exceptionFor(command)?.check(wordsOf(command.text));
        }
        if (shown.length === 0) return;
        const said = await runShown(directory, shown, npmEnvironment());
        for (const [index, { text, output, line }] of shown.entries()) {
          if (output === undefined) continue;
          const actual = said[index]?.replace(/([^\n])$/, "$1\n") ?? "";
          expect(actual, `${name}:${line}: ${text}`).toMatch(outputPattern(output));
        }
      },
    );
  });

  it("that are not run are there: the list has none too many", () => {
    const all = DOCUMENTS.flatMap(({ sections }) => sections).flatMap(({ commands }) => commands);
    const unused = NOT_RUN.filter(({ pattern }) => !all.some(({ text }) => pattern.test(text)));
    expect(unused.map(({ reason }) => reason)).toEqual([]);
  });
});

describe("what documents name", () => {
  it("README has the command of all tests on a line of its own, and how to start", async () => {
    const readme = await readFile(join(REPOSITORY, "README.md"), "utf8");
    expect(readme).toMatch(/^sh mount-scripts\/test\.sh$/m);
    expect(readme).toMatch(/^sh mount-scripts\/quickstart\.sh$/m);
  });

  it("commands and options are those that there are", async () => {
    for (const path of await documentPaths()) {
      await expectShownOptions(path, await readFile(join(REPOSITORY, path), "utf8"));
    }
  });

  it("files, folders and identifiers of CONTRIBUTING are those of the source", async () => {
    const markdown = await readFile(join(REPOSITORY, "CONTRIBUTING.md"), "utf8");
    expect(await namesNotInSource(markdown)).toEqual([]);
  });

  it("links lead to files, and to headings", async () => {
    const broken: string[] = [];
    for (const path of await documentPaths()) broken.push(...(await brokenLinks(path)));
    expect(broken).toEqual([]);
  });
});

/** Links of a document to files and headings that are not there. */
async function brokenLinks(path: string): Promise<string[]> {
  const markdown = await readFile(join(REPOSITORY, path), "utf8");
  const broken: string[] = [];
  for (const [, target = ""] of markdown.matchAll(/\]\(([^)\s]+)\)/g)) {
    const [file = "", heading] = target.split("#");
    const linked = file === "" ? path : join(dirname(path), file);
    const isThere =
      existsSync(join(REPOSITORY, linked)) &&
      (heading === undefined || (await headingsOf(linked)).includes(heading));
    if (!isThere && !/^https?:/.test(target)) broken.push(`${path}: ${target}`);
  }
  return broken;
}

async function documentPaths(): Promise<string[]> {
  const notes = await readdir(join(REPOSITORY, "native-notes"));
  const names = notes.filter((name) => name.endsWith(".md")).map((name) => `native-notes/${name}`);
  return ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", ...names];
}

/** The headings of a document, as a link spells them. */
async function headingsOf(path: string): Promise<string[]> {
  const markdown = await readFile(join(REPOSITORY, path), "utf8");
  return [...markdown.matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) =>
    heading
      .toLowerCase()
      .replace(/[^\w\s-]/g, "")
      .replaceAll(" ", "-"),
  );
}
