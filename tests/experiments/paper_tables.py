"""The result tables of van der Weij, Poesio, Schoots (2024), from the authors' own result files.

`*` one answer in more than 95% of the responses, `f3` three faulty answers, `F` all of them faulty.
"""

# Matches among the 200 validation questions, by layer and coefficient; in brackets without steering.
GRID = """
| behaviour | layer | +1 | +2 | +3 | +5 | +10 | -1 | -2 | -3 | -5 | -10 |
| myopic (47) | 10 | 68 | 110 | 131 | 141 | 89* | 42 | 44 | 56 | 105 | 110* |
| | 15 | 145 | 166 | 129 f1 | 41 f150 | | 27 | 66 f1 | 37 f15 | | |
| wealth (98) | 10 | 111 | 111 | 105 | 101 | 68 f70 | 62 | 56 | 58 | 103* | |
| | 15 | 112 | 108 | 96* | | | 83 | 74 | 82 | 100 f8* | |
| sycophancy (121) | 10 | 121 | 120 | 120 | 117 | 107 | 122 | 120 | 120 | 121 | 124 |
| | 15 | 121 | 123 | 122 | 122 | 117 | 121 | 121 | 121 | 120 | 133 |
| agreeableness (193) | 10 | 195 | 140 | 98* | | | 138 | 136 | 122 | 127 | f200 |
| | 15 | 169 | 101* | | | | 126 | 156 | 102* | | |
| anti_immigration (31) | 10 | 53 | 92 | 107 | 52 | f200 | 12 | 33 | 70 | 99* | |
| | 15 | 75 | 80 | 99* | | | 43 | 99* | | | |
"""

# Matching scores on the test questions: one vector, with its chosen coefficients.
INDIVIDUAL = """
| behaviour | c=0 | L10 neg | L10 pos | L15 neg | L15 pos |
| myopic | .283 | .250 | .510* | .173 | .863 |
| wealth_seeking | .495 | .228 | .621 | .365 | .561 |
| sycophancy | .583 | .557 | .593 | .590 | .583 |
| agreeableness | .923 | .570 | .980 | .620 | .970 |
| anti_immigration | .167 | .050 | .540 | .047 | .373 |
"""

# All five merged into one vector: myopic, wealth_seeking, sycophancy, agreeableness, anti_immigration.
COMBINED = """
| layer, reduce, variant | myopic | wealth | syco. | agree. | anti-imm. |
| 10 sum pos unweighted | .537 | .565 | .583 | .960 | .047 |
| 10 sum pos weighted | .510* | .516* | .487* | F | F |
| 10 sum neg unweighted | .223 | .267 | .580 | .977 | .120 |
| 10 sum neg weighted | .490* | .460* | .510 | .517* | .483* |
| 15 sum pos unweighted | .757 | .509 | .607 | .963 | .090 |
| 15 sum pos weighted | .900 | .477 | .620 | .483* | .500* |
| 15 sum neg unweighted | .230 | .509 | .600 | .920 | .320 |
| 15 sum neg weighted | .380 (3 faulty) | .509 | .533* | .770 | .330 |
| 10 mean pos unweighted | .290 | .523 | .573 | .950 | .153 |
| 10 mean pos weighted | .610 | .491 | .600 | .993 | .060 |
| 10 mean neg unweighted | .287 | .470 | .610 | .917 | .197 |
| 10 mean neg weighted | .343 | .418 | .627 | .820 | .303 |
| 15 mean pos unweighted | .367 | .519 | .583 | .913 | .183 |
| 15 mean pos weighted | .457 | .505 | .600 | .957 | .140 |
| 15 mean neg unweighted | .230 | .477 | .597 | .953 | .140 |
| 15 mean neg weighted | .220 | .481 | .603 | .963 | .123 |
"""

# All five at layers 11 to 15, by global coefficient, in the same order.
SIMULTANEOUS = """
| c | myopic | wealth | syco. | agree. | anti-imm. |
| -2.0 | .473 | .442 | .507 | .557 | .463 |
| -1.5 | .437 | .358 | .533 | .483* | .500* |
| -1.0 | .160 | .256 | .613 | .487* | .500* |
| -0.75 | .130 | .228 | .653 | .517* | .497* |
| -0.5 | .123 | .232 | .623 | .597 | .473* |
| -0.45 | .120 | .249 | .630 | .617 | .443 |
| -0.2 | .150 | .337 | .600 | .927 | .113 |
| 0 | .277 | .509 | .587 | .910 | .187 |
| 0.2 | .533 | .656 | .607 | .763 | .243 |
| 0.5 | .867 | .723 | .557 | .943 | .083 |
| 0.55 | .883 | .726 | .553 | .967 | .093 |
| 0.75 | .907 | .730 | .500 | .927 | .133 |
| 1.0 | .867 | .642 | .497 | .600 | .373 |
| 1.5 | .530* | .516* | .487* | .533* | .487* |
| 2.0 | .520* | .516* | .487* | .427 (25 faulty) | .427 (32 faulty) |
"""
