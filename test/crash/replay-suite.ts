/** The crash tests of a group of images: crashes of the daemon and of the host at every moment of random work. */

import { describe, expect, it } from "vitest";
import { RECIPES, type RecipeGroup } from "../support/crash-recipes.ts";
import { CrashReplay, type ReplayPlan } from "../support/crash-replay.ts";
import { withMemoryScratch } from "../support/crash-scratch.ts";
import { byScale } from "../support/scale.ts";

const PLAN: ReplayPlan = {
  sessions: byScale(2, 5),
  steps: byScale(35, 80),
  prefixes: byScale(24, 1000),
  randomStates: byScale(24, 400),
  aftermaths: byScale(1, 8),
  aftermath: { steps: byScale(10, 20), prefixes: byScale(8, 60), randomStates: byScale(8, 60) },
};

export function testReplays(group: RecipeGroup): void {
  const recipes = RECIPES.filter((recipe) => recipe.group === group);
  describe("a crash at any moment of random work leaves leaks at most, and what was flushed", () => {
    it.each(recipes.map((recipe) => [recipe.name, recipe] as const))("%s", async (_, recipe) => {
      await withMemoryScratch("crash", async (root) => {
        const states = await new CrashReplay(root, recipe, PLAN).run();
        expect(states).toBeGreaterThan(PLAN.randomStates);
      });
    });
  });
}
